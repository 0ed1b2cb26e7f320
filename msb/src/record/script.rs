//! What both sides of the boot share must know of scripts: the rule for a name, and the way to PATH.

/// Where the guest finds its scripts. The directory is on PATH.
pub const GUEST_DIR: &str = "/.msb/scripts";

/// The file beside that directory which puts it on PATH again in a login shell: those set PATH anew.
pub const PROFILE_NAME: &str = "profile.sh";
/// What is in it.
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
/// The reason in words.
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
