//! Scripts in the guest: the rule for their names, and how they get into PATH.

/// Where the guest finds its scripts. The directory is on PATH.
pub const GUEST_DIR: &str = "/.msb/scripts";

/// The file beside that directory that adds it to PATH in a login shell, which resets PATH.
pub const PROFILE_NAME: &str = "profile.sh";
/// The content of that file.
pub const PROFILE: &str = "\
# The scripts of this VM come first in PATH, once.
case \":$PATH:\" in
    *:/.msb/scripts:*) ;;
    *) PATH=/.msb/scripts${PATH:+:$PATH} ;;
esac
";

/// Checks a script's name: one path component that a shell can call.
///
/// # Errors
/// The reason.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("a script needs a name"),
        "." | ".." => Err("a script cannot be named \".\" or \"..\""),
        _ if name.len() > 255 => Err("a script's name has at most 255 bytes"),
        _ if name.contains(['/', '\0', '\n']) => Err("a script's name cannot hold \"/\", NUL or a newline"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn refuses_names_that_are_not_one_component() {
        for bad in ["", ".", "..", "a/b", "/a", "a\0", "a\nb", &"x".repeat(256)] {
            assert!(super::check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["setup", "a.b", "...", "-x", "ü", &"x".repeat(255)] {
            assert!(super::check_name(good).is_ok(), "{good:?}");
        }
    }
}
