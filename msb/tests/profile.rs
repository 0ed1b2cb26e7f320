//! The scripts' profile, judged by a shell. In a process of its own: a child has all locks of its parent until it execs.

use std::process::Command;

use msb::record::script::{GUEST_DIR, PROFILE};

#[test]
fn a_profile_puts_the_scripts_first_in_path_and_once() {
    let path = |before: &str| {
        let line = format!("{PROFILE}{PROFILE}echo \"$PATH\"");
        let output = Command::new("/bin/sh").args(["-c", &line]).env("PATH", before).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(path("/usr/bin:/bin"), "/.msb/scripts:/usr/bin:/bin\n");
    assert_eq!(path("/bin:/.msb/scripts"), "/bin:/.msb/scripts\n");
    assert!(PROFILE.contains(GUEST_DIR));
}
