//! The flags about volumes: docker's.

use std::path::Path;

use msb::record::path::absolute;
use msb::record::{Tmpfs, Volume, VolumeContent, check_volume_name};

use crate::volume;

#[derive(Debug, clap::Args)]
pub(crate) struct VolumeArgs {
    /// Mount a directory or a file of the host at DST in the guest, or the volume NAME of the store, which is created if it is missing;
    /// with ro, the guest can only read it (repeatable)
    #[arg(short = 'v', long = "volume", value_name = "SRC|NAME:DST[:ro]", value_parser = bind)]
    pub volumes: Vec<Volume>,

    /// The same in key=value form: type=bind, volume or tmpfs, src=, dst=, ro, and for a tmpfs size= and mode= (repeatable)
    #[arg(long = "mount", value_name = "KEY=VALUE,...", value_parser = mount)]
    pub mounts: Vec<Volume>,

    /// Mount an empty file system in the guest's memory (repeatable)
    #[arg(long, value_name = "DST[:size=SIZE,mode=MODE]", value_parser = tmpfs)]
    pub tmpfs: Vec<Volume>,
}

impl VolumeArgs {
    /// The recorded volumes and those of the flags. A flag replaces the recorded volume with its target.
    pub(crate) fn override_recorded(&self, recorded: &[Volume]) -> Vec<Volume> {
        let flags: Vec<&Volume> = self.volumes.iter().chain(&self.mounts).chain(&self.tmpfs).collect();
        let is_replaced = |volume: &&Volume| flags.iter().any(|flag| flag.target == volume.target);
        recorded.iter().filter(|volume| !is_replaced(volume)).chain(flags.iter().copied()).cloned().collect()
    }
}

/// Parses the argument of `-v`.
fn bind(text: &str) -> Result<Volume, String> {
    let (source, target, option) = match text.split(':').collect::<Vec<_>>()[..] {
        [source, target] => (source, target, "rw"),
        [source, target, option] => (source, target, option),
        _ => {
            return Err(
                "SRC:DST or SRC:DST:ro is expected (--mount takes paths with a colon, --tmpfs a target alone)".into()
            );
        }
    };
    let mut volume = Volume::new(source_or_name(source)?, volume::check_target(target)?);
    volume.readonly = match option {
        "ro" => true,
        "rw" => false,
        other => return Err(format!("option {other:?}: ro or rw is expected")),
    };
    Ok(volume)
}

/// A path has a slash in it, or is `.` or `..`.
fn source_or_name(text: &str) -> Result<VolumeContent, String> {
    if text.contains('/') || [".", ".."].contains(&text) {
        return source(text);
    }
    check_volume_name(text).map_err(|why| format!("{text:?}: {why} (a path has a \"/\" in it: ./{text})"))?;
    Ok(VolumeContent::Volume(text.to_owned()))
}

fn source(text: &str) -> Result<VolumeContent, String> {
    absolute(Path::new(text)).map(VolumeContent::Source).map_err(|error| format!("{text:?}: {error}"))
}

/// Parses the argument of `--mount`, with docker's keys and their synonyms.
fn mount(text: &str) -> Result<Volume, String> {
    let (mut kind, mut src, mut dst, mut readonly) = ("volume", None, None, false);
    let mut options = Tmpfs::default();
    let fields = fields(text)?;
    for field in &fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field.as_str(), None),
        };
        let needed = || value.filter(|value| !value.is_empty()).ok_or(format!("{key} needs a value: {key}=..."));
        match key {
            "type" => kind = needed()?,
            "src" | "source" => src = Some(needed()?),
            "dst" | "destination" | "target" => dst = Some(needed()?),
            "ro" | "readonly" => {
                readonly = match value {
                    None | Some("true" | "1") => true,
                    Some("false" | "0") => false,
                    Some(other) => return Err(format!("{key}={other}: true or false is expected")),
                }
            }
            "size" | "tmpfs-size" => options.size = Some(needed()?.to_owned()),
            "mode" | "tmpfs-mode" => options.mode = Some(needed()?.to_owned()),
            other => return Err(format!("unknown key {other:?} (type, src, dst, ro, size and mode are known)")),
        }
    }
    let target = volume::check_target(dst.ok_or("dst= is missing")?)?;
    let is_tmpfs = kind == "tmpfs";
    if !is_tmpfs && (options.size.is_some() || options.mode.is_some()) {
        return Err("size and mode are for type=tmpfs".into());
    }
    let content = match (kind, src) {
        ("bind", Some(path)) => source(path)?,
        ("volume", Some(name)) => {
            check_volume_name(name).map_err(|why| format!("src={name}: {why} (type=bind takes a path)"))?;
            VolumeContent::Volume(name.to_owned())
        }
        ("bind" | "volume", None) => return Err("src= is missing".into()),
        ("tmpfs", Some(_)) => return Err("a tmpfs has no src".into()),
        ("tmpfs", None) => tmpfs_content(options)?,
        (other, _) => return Err(format!("type={other}: bind, volume or tmpfs is expected")),
    };
    let mut volume = Volume::new(content, target);
    volume.readonly = readonly;
    Ok(volume)
}

/// The fields of a line of CSV, as docker reads `--mount`: one in double quotes may hold commas.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let (mut fields, mut field, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '"' if is_quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if is_quoted => is_quoted = false,
            '"' if field.is_empty() => is_quoted = true,
            ',' if !is_quoted => fields.push(std::mem::take(&mut field)),
            other => field.push(other),
        }
    }
    fields.push(field);
    if is_quoted { Err("a double quote is not closed".into()) } else { Ok(fields) }
}

/// Parses the argument of `--tmpfs`.
fn tmpfs(text: &str) -> Result<Volume, String> {
    let (target, fields) = text.split_once(':').unwrap_or((text, ""));
    let mut options = Tmpfs::default();
    for field in fields.split(',').filter(|field| !field.is_empty()) {
        match field.split_once('=') {
            Some(("size", size)) => options.size = Some(size.to_owned()),
            Some(("mode", mode)) => options.mode = Some(mode.to_owned()),
            // What every volume of this kind has, and docker's users write.
            None if ["rw", "nosuid", "nodev"].contains(&field) => {}
            _ => return Err(format!("unknown option {field:?} (size= and mode= are known)")),
        }
    }
    Ok(Volume::new(tmpfs_content(options)?, volume::check_target(target)?))
}

fn tmpfs_content(options: Tmpfs) -> Result<VolumeContent, String> {
    volume::tmpfs_options(options.size.as_deref(), options.mode.as_deref())?;
    Ok(VolumeContent::Tmpfs(options))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(parse: fn(&str) -> Result<Volume, String>, text: &str) -> Value {
        serde_json::to_value(parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))).unwrap()
    }

    #[test]
    fn a_volume_is_a_path_or_a_name_and_a_target() {
        let here = std::env::current_dir().unwrap();
        for (text, expected) in [
            ("/src:/dst", json!({"source": "/src", "target": "/dst", "readonly": false})),
            ("/src:/dst/:ro", json!({"source": "/src", "target": "/dst", "readonly": true})),
            ("./src:/dst:rw", json!({"source": here.join("src"), "target": "/dst", "readonly": false})),
            (".:/dst", json!({"source": here, "target": "/dst", "readonly": false})),
            ("cache:/dst", json!({"volume": "cache", "target": "/dst", "readonly": false})),
        ] {
            assert_eq!(parsed(bind, text), expected, "{text}");
        }
        for bad in
            ["", "/src", "/src:", ":/dst", "/src:dst", "/src:/", "/src:/dst:z", "/a:/b:ro:x", "a b:/dst", "/src:/.msb"]
        {
            assert!(bind(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_mount_has_the_keys_of_docker() {
        for (text, expected) in [
            ("type=bind,src=/a,dst=/b", json!({"source": "/a", "target": "/b", "readonly": false})),
            ("type=bind,source=/a:b,target=/b,readonly", json!({"source": "/a:b", "target": "/b", "readonly": true})),
            (
                r#""src=/a,""b""",type=bind,dst=/c"d"#,
                json!({"source": "/a,\"b\"", "target": "/c\"d", "readonly": false}),
            ),
            ("source=v,destination=/b,ro=true", json!({"volume": "v", "target": "/b", "readonly": true})),
            ("type=volume,src=v,dst=/b,readonly=false", json!({"volume": "v", "target": "/b", "readonly": false})),
            (
                "type=tmpfs,dst=/b,tmpfs-size=64M,tmpfs-mode=0700",
                json!({"tmpfs": {"size": "64M", "mode": "0700"}, "target": "/b", "readonly": false}),
            ),
        ] {
            assert_eq!(parsed(mount, text), expected, "{text}");
        }
        for (bad, expected) in [
            ("type=bind,src=/a", "dst= is missing"),
            ("type=bind,dst=/b", "src= is missing"),
            ("type=nfs,src=a,dst=/b", "type=nfs"),
            ("type=volume,src=/a,dst=/b", "type=bind takes a path"),
            ("type=tmpfs,src=a,dst=/b", "no src"),
            ("type=bind,src=/a,dst=/b,size=1", "for type=tmpfs"),
            ("type=bind,src=/a,dst=/b,bind-propagation=rslave", "unknown key"),
            ("type=bind,src=/a,dst=/b,ro=maybe", "true or false"),
            ("type=bind,src,dst=/b", "src needs a value"),
            (r#"type=bind,"src=/a,dst=/b"#, "a double quote is not closed"),
        ] {
            let error = mount(bad).unwrap_err();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    #[test]
    fn a_tmpfs_is_a_target_with_options() {
        let empty = json!({"size": null, "mode": null});
        assert_eq!(parsed(tmpfs, "/t"), json!({"tmpfs": empty, "target": "/t", "readonly": false}));
        let sized = json!({"size": "1G", "mode": "755"});
        assert_eq!(parsed(tmpfs, "/t:rw,size=1G,mode=755"), json!({"tmpfs": sized, "target": "/t", "readonly": false}));
        for bad in ["t", "/t:exec=1", "/t:size=x", "/t:mode=9"] {
            assert!(tmpfs(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_flag_replaces_the_recorded_volume_with_its_target() {
        let args = |volumes: &[&str]| VolumeArgs {
            volumes: volumes.iter().map(|text| bind(text).unwrap()).collect(),
            mounts: Vec::new(),
            tmpfs: Vec::new(),
        };
        let recorded = [bind("/a:/x").unwrap(), bind("/b:/y").unwrap()];
        assert_eq!(args(&[]).override_recorded(&recorded), recorded);
        let volumes = args(&["/c:/x:ro", "/d:/z"]).override_recorded(&recorded);
        assert_eq!(volumes, [bind("/b:/y"), bind("/c:/x:ro"), bind("/d:/z")].map(Result::unwrap));
    }
}
