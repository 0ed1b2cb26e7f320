//! Suggestions for misspelled names of operations and members.

/// Names that other tools use for operations and members.
const OTHER_NAMES: [(&str, &str); 24] = [
    ("add", "copy_file"),
    ("copy", "copy_file"),
    ("cp", "copy_file"),
    ("write", "text"),
    ("rm", "remove"),
    ("delete", "remove"),
    ("unlink", "remove"),
    ("mv", "rename"),
    ("move", "rename"),
    ("ln", "symlink"),
    ("link", "symlink"),
    ("setcap", "capability"),
    ("capabilities", "capability"),
    ("setfattr", "xattr"),
    ("sed", "edit"),
    ("replace", "edit"),
    ("directory", "mkdir"),
    ("dir", "mkdir"),
    ("source", "src"),
    ("dest", "dst"),
    ("destination", "dst"),
    ("user", "uid"),
    ("owner", "uid"),
    ("group", "gid"),
];

/// The name in `known` that is most similar to `written`, if one is similar.
pub fn nearest<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |name: &str| name.to_lowercase().replace(['_', '-', ' '], "");
    let name = plain(written);
    let other = OTHER_NAMES.iter().find(|(other, _)| *other == name).map(|(_, ours)| *ours);
    let distance = |known: &&&str| strsim::damerau_levenshtein(&name, &plain(known));
    known
        .iter()
        .find(|&&known| plain(known) == name)
        .or_else(|| known.iter().find(|&&known| Some(known) == other))
        .or_else(|| known.iter().min_by_key(distance).filter(|known| distance(known) <= known.len().div_ceil(4)))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn other_spellings_near_misses_and_other_tools_names() {
        let ops = [
            "text",
            "file",
            "mkdir",
            "append",
            "copy_file",
            "copy_dir",
            "symlink",
            "hardlink",
            "rename",
            "remove",
            "xattr",
        ];
        for (written, meant) in [
            ("copyFile", Some("copy_file")),
            ("CopyFile", Some("copy_file")),
            ("copy-file", Some("copy_file")),
            ("copyDir", Some("copy_dir")),
            ("COPY_DIR", Some("copy_dir")),
            ("copy_fiel", Some("copy_file")),
            ("apend", Some("append")),
            ("mkdri", Some("mkdir")),
            ("tetx", Some("text")),
            ("symlnk", Some("symlink")),
            ("hard_link", Some("hardlink")),
            ("mv", Some("rename")),
            ("rm", Some("remove")),
            ("copy", Some("copy_file")),
            ("teleport", None),
            ("run", None),
            ("", None),
            // Not among these.
            ("sed", None),
        ] {
            assert_eq!(nearest(written, &ops), meant, "{written}");
        }
        assert_eq!(nearest("contentBase64", &["path", "content_base64"]), Some("content_base64"));
        assert_eq!(nearest("modee", &["path", "mode"]), Some("mode"));
        assert_eq!(nearest("dest", &["src", "dst"]), Some("dst"));
    }
}
