//! Redirects, metacopies, and the other forms of whiteouts.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use msb::overlay::beneath::Dir;
use msb::overlay::resolve::{End, Last, resolve};
use msb::overlay::{Leaf, Merged, whiteout};
use rustix::fs::{XattrFlags, setxattr};

use super::{Stack, name};

/// Sets one of overlayfs's own xattrs.
fn mark(stack: &Stack, path: &str, mark: &str, value: &str) {
    setxattr(stack.path(path), format!("trusted.overlay.{mark}"), value.as_bytes(), XattrFlags::empty()).unwrap();
}

fn leaf(root: &Merged, path: &str) -> Leaf {
    let End::Leaf(_, leaf) = resolve(root, Path::new(path), Last::Keep).unwrap().end else { panic!("{path}") };
    leaf
}

/// The content of a regular file of the root.
fn content(root: &Merged, path: &str) -> String {
    let leaf = leaf(root, path);
    let mut content = String::new();
    leaf.data().open_to_read().unwrap().read_to_string(&mut content).unwrap();
    content
}

#[test]
fn redirects_metacopies_and_whiteouts_in_xattrs_mean_what_they_mean_to_the_kernel() {
    let stack = Stack::new();
    for dir in ["rel-from", "chain-from", "abs-from/in", "far-from", "hidden/deep", "plain", "z/b/c", "a/q/c"] {
        stack.write(&format!("bottom/{dir}/f"), dir);
    }
    for (file, content) in
        [("bottom/file", "content"), ("bottom/xw/gone", ""), ("bottom/xw/stays", ""), ("top/xw/gone", "")]
    {
        stack.write(file, content);
    }
    symlink("/etc", stack.path("bottom/sym")).unwrap();
    for (dir, redirect) in [
        ("top/rel", "rel-from"),
        ("top/mid", "chain-from"),
        ("upper/chain", "mid"),
        ("top/x/abs", "/abs-from/in"),
        ("top/y/far", "/far-from"),
        ("upper/far", "/y/far"),
        ("top/opaque", "/plain"),
        ("top/opaque/below", "/hidden/deep"),
        // On the way of another one, for the layers below.
        ("top/k", "/z"),
        ("top/k/b/c", "/z/b/c"),
        ("upper/by-k", "/k/b/c"),
        ("top/a/b", "q"),
        ("upper/by-a", "/a/b/c"),
        // What is there is not a directory, or nothing.
        ("top/dangling", "/none/at/all"),
        ("top/link", "/sym"),
        ("top/through", "/file/x"),
        ("top/loop", "/loop"),
    ] {
        fs::create_dir_all(stack.path(dir)).unwrap();
        mark(&stack, dir, "redirect", redirect);
    }
    mark(&stack, "top/opaque", "opaque", "y");
    mark(&stack, "top/xw", "opaque", "x");
    mark(&stack, "top/xw/gone", "whiteout", "y");
    for (file, redirect) in [("top/m-top", Some("/file")), ("upper/m-upper", Some("/m-top")), ("upper/file", None)] {
        stack.write(file, "\0\0\0\0\0\0\0");
        mark(&stack, file, "metacopy", "");
        if let Some(redirect) = redirect {
            mark(&stack, file, "redirect", redirect);
        }
    }
    fs::set_permissions(stack.path("upper/file"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(stack.path("upper/plain")).unwrap();
    // As a rename leaves it: the old name is a whiteout.
    for (layer, names) in [
        ("top", &["rel-from", "chain-from", "abs-from", "far-from", "hidden", "z"][..]),
        ("top/a", &["q"]),
        ("upper", &["mid", "y", "m-top", "k", "a"]),
    ] {
        let dir = Dir::open(&stack.path(layer)).unwrap();
        for gone in names {
            whiteout::make_whiteout(&dir, name(gone)).unwrap();
        }
    }
    assert_eq!(stack.ours(), stack.kernels_with(",redirect_dir=on,metacopy=on,index=off"));
    let root = stack.open();
    let is_metacopy = ["/m-upper", "/file", "/xw/stays"].map(|path| leaf(&root, path).is_metacopy());
    assert_eq!(is_metacopy, [true, true, false]);
    // A directory keeps its inode number when it is copied up. With a redirect it shares its lower ones with others.
    for (path, identity) in [("/plain", "bottom/plain"), ("/far", "upper/far"), ("/rel", "top/rel")] {
        let resolved = resolve(&root, Path::new(path), Last::Follow).unwrap();
        let shown = resolved.steps.last().unwrap().dir.identity().stat().unwrap().st_ino;
        assert_eq!(shown, fs::metadata(stack.path(identity)).unwrap().ino(), "{path}");
    }
    for (path, expected) in [
        ("/rel/f", "rel-from"),
        ("/chain/f", "chain-from"),
        ("/x/abs/f", "abs-from/in"),
        ("/far/f", "far-from"),
        ("/opaque/below/f", "hidden/deep"),
        ("/by-k/f", "z/b/c"),
        ("/by-a/f", "a/q/c"),
        ("/m-upper", "content"),
        ("/file", "content"),
    ] {
        assert_eq!(content(&root, path), expected, "{path}");
    }
}

#[test]
fn a_mark_that_cannot_be_followed_is_an_error_and_hides_no_other_name() {
    let stack = Stack::new();
    stack.write("bottom/plain/f", "");
    stack.write("bottom/below-dir/f", "");
    symlink("file", stack.path("bottom/below-link")).unwrap();
    for (dir, redirect) in
        [("dots", ".."), ("up", "/../../etc"), ("both", "a/b"), ("empty", ""), ("slashes", "//plain")]
    {
        fs::create_dir(stack.path("upper").join(dir)).unwrap();
        mark(&stack, &format!("upper/{dir}"), "redirect", redirect);
    }
    for file in ["lost", "below-dir", "below-link"] {
        stack.write(&format!("upper/{file}"), "1234567");
        mark(&stack, &format!("upper/{file}"), "metacopy", "");
    }
    // Any user of the root can set these.
    fs::create_dir(stack.path("upper/users")).unwrap();
    stack.write("upper/users-file", "");
    for (path, mark, value) in [
        ("upper/users", "redirect", &b"/plain"[..]),
        ("upper/users-file", "metacopy", b""),
        ("upper/fine", "redirect", b"/x"),
    ] {
        if path == "upper/fine" {
            stack.write(path, "own");
        }
        setxattr(stack.path(path), format!("user.overlay.{mark}"), value, XattrFlags::empty()).unwrap();
    }
    // In the lowest layer marks mean nothing.
    fs::create_dir(stack.path("bottom/low")).unwrap();
    mark(&stack, "bottom/low", "redirect", "..");
    let root = stack.open();
    assert!(root.lookup(name("low")).unwrap().is_some());
    for (bad, kind) in [
        ("dots", io::ErrorKind::InvalidData),
        ("up", io::ErrorKind::InvalidData),
        ("both", io::ErrorKind::InvalidData),
        ("empty", io::ErrorKind::InvalidData),
        ("slashes", io::ErrorKind::InvalidData),
        ("users", io::ErrorKind::PermissionDenied),
        ("users-file", io::ErrorKind::PermissionDenied),
    ] {
        assert_eq!(root.lookup(name(bad)).unwrap_err().kind(), kind, "{bad}");
    }
    for lost in ["lost", "below-dir", "below-link"] {
        let error = root.lookup(name(lost)).unwrap_err().to_string();
        assert!(error.contains("no lower layer has its data"), "{lost}: {error}");
    }
    assert_eq!(content(&root, "/fine"), "own");
    let mut names: Vec<_> = root.list().unwrap().into_iter().map(|listed| listed.name).collect();
    names.sort();
    let all = [
        "below-dir",
        "below-link",
        "both",
        "dots",
        "empty",
        "fine",
        "lost",
        "low",
        "plain",
        "slashes",
        "up",
        "users",
        "users-file",
    ];
    assert_eq!(names, all);
}

#[test]
fn whiteouts_in_ocis_form_hide_what_is_below_them_if_they_are_read() {
    let stack = Stack::new();
    for file in ["etc/gone", "etc/kept", "etc/again", "dir-again/old", "opaque/old", "over/file"] {
        stack.write(&format!("bottom/{file}"), "");
    }
    for file in [
        "etc/.wh.gone",
        "etc/again",
        "etc/.wh.again",
        "dir-again/new",
        ".wh.dir-again",
        "opaque/.wh..wh..opq",
        "opaque/new",
    ] {
        stack.write(&format!("top/{file}"), "");
    }
    // In the upper it is a name like any other.
    stack.write("upper/over/.wh.file", "");
    let all = Merged::open(&[stack.path("top"), stack.path("bottom")], Some(&stack.path("upper"))).unwrap();
    let root = all.clone().with_oci_whiteouts();
    let exists =
        |root: &Merged, path: &str| !matches!(resolve(root, Path::new(path), Last::Keep).unwrap().end, End::Missing(_));
    for (path, expected) in [
        ("/etc/gone", false),
        ("/etc/.wh.gone", false),
        ("/etc/kept", true),
        ("/etc/again", true),
        ("/dir-again/new", true),
        ("/dir-again/old", false),
        ("/opaque/new", true),
        ("/opaque/old", false),
        ("/opaque/.wh..wh..opq", false),
        ("/over/file", true),
        ("/over/.wh.file", true),
    ] {
        assert_eq!(exists(&root, path), expected, "{path}");
        assert!(exists(&all, path), "{path}");
        let dir = resolve(&root, Path::new(path).parent().unwrap(), Last::Follow).unwrap();
        let listed = dir.steps.last().unwrap().dir.list().unwrap();
        let listed = listed.iter().find(|listed| listed.name == Path::new(path).file_name().unwrap());
        assert_eq!(listed.is_some(), expected, "{path}");
        if let Some(listed) = listed {
            assert!(dir.steps.last().unwrap().dir.lookup_listed(listed).unwrap().is_some(), "{path}");
        }
    }
    // A name that is too long with its prefix has no whiteout.
    let long = "x".repeat(255);
    stack.write(&format!("bottom/{long}"), "");
    assert!(exists(&root, &format!("/{long}")));
}

#[test]
fn an_upper_is_plain_if_guests_read_all_of_its_marks() {
    for (path, name_of_mark, value, expected) in [
        ("upper/dir", "opaque", "y", true),
        ("upper/dir", "opaque", "x", false),
        ("upper/dir", "redirect", "other", false),
        ("upper/dir/file", "whiteout", "y", false),
        ("upper/dir/file", "metacopy", "", false),
    ] {
        let stack = Stack::new();
        stack.write("upper/dir/file", "");
        mark(&stack, path, name_of_mark, value);
        whiteout::make_whiteout(&Dir::open(&stack.path("upper")).unwrap(), name("gone")).unwrap();
        let is_plain = msb::overlay::is_plain(&Dir::open(&stack.path("upper")).unwrap()).unwrap();
        assert_eq!(is_plain, expected, "{name_of_mark} {value}");
    }
}

#[test]
fn what_shows_through_is_what_a_search_of_the_lower_layers_finds() {
    let stack = Stack::new();
    for (file, content) in [
        ("upper/alone", "a"),
        ("upper/both", "a"),
        ("bottom/both", "b"),
        ("bottom/file", "b"),
        ("bottom/empty", ""),
        ("bottom/gone", "b"),
        ("bottom/gone-too", "b"),
        ("top/gone-too", ""),
        ("bottom/dir/f", "b"),
        ("top/.wh.of-oci", ""),
        ("bottom/of-oci", "b"),
    ] {
        stack.write(file, content);
    }
    symlink("nowhere", stack.path("top/link")).unwrap();
    mark(&stack, "top/gone-too", "whiteout", "y");
    whiteout::make_whiteout(&Dir::open(&stack.path("top")).unwrap(), name("gone")).unwrap();
    let root = stack.open();
    let of_oci = root.clone().with_oci_whiteouts();
    for (file, expected, expected_of_oci) in [
        ("alone", false, false),
        ("both", true, true),
        ("file", true, true),
        ("empty", true, true),
        ("dir", true, true),
        ("link", true, true),
        ("gone", false, false),
        ("gone-too", false, false),
        ("of-oci", true, false),
        ("missing", false, false),
    ] {
        for (root, expected) in [(&root, expected), (&of_oci, expected_of_oci)] {
            assert_eq!(root.shows_through(name(file)).unwrap(), expected, "{file}");
            assert_eq!(root.lookup_lower(name(file)).unwrap().is_some(), expected, "{file}");
        }
    }
}
