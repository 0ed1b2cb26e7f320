//! The environment of a command: the image's variables, the request's over them, and what every program expects.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use msb::record::script::GUEST_DIR;
use msb::wire::exec::{DEFAULT_PATH, Text};

use crate::user::User;

/// The environment of a command: PATH with the scripts first, HOME, USER, LOGNAME, and TERM on a terminal; over these the image's
/// variables, and over those the request's.
pub fn of_command(
    defaults: &[Text],
    request: Vec<Text>,
    user: &User,
    term: Option<OsString>,
) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: &OsStr, value: OsString| set_variable(&mut env, name, value);
    set(OsStr::new("PATH"), DEFAULT_PATH.into());
    set(OsStr::new("HOME"), user.home.clone().into());
    if let Some(name) = &user.name {
        set(OsStr::new("USER"), name.into());
        set(OsStr::new("LOGNAME"), name.into());
    }
    if let Some(term) = term {
        set(OsStr::new("TERM"), term);
    }
    merge(env, defaults.iter().cloned().chain(request))
}

/// The environment that a request describes completely. runc and crun add a missing HOME, too.
pub fn exact(request: Vec<Text>, user: &User) -> Vec<(OsString, OsString)> {
    let mut env = Vec::new();
    assign(&mut env, request.into_iter());
    if !env.iter().any(|(name, _)| name == "HOME") {
        env.push(("HOME".into(), user.home.clone().into()));
    }
    env
}

/// Applies `K=V` assignments to an environment, and puts the scripts first in PATH unless they are in it.
pub fn merge(mut env: Vec<(OsString, OsString)>, assignments: impl Iterator<Item = Text>) -> Vec<(OsString, OsString)> {
    assign(&mut env, assignments);
    let path = env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH.into(), |(_, path)| path.clone());
    let has_scripts = path.as_bytes().split(|&byte| byte == b':').any(|dir| dir == GUEST_DIR.as_bytes());
    if !has_scripts {
        let with_scripts = [OsStr::new(GUEST_DIR), &path].join(OsStr::new(":"));
        set_variable(&mut env, OsStr::new("PATH"), with_scripts);
    }
    env
}

fn assign(env: &mut Vec<(OsString, OsString)>, assignments: impl Iterator<Item = Text>) {
    for assignment in assignments {
        let assignment = OsString::from(assignment);
        let bytes = assignment.as_bytes();
        // An assignment without a name is ignored.
        if let Some(end) = bytes.iter().position(|&byte| byte == b'=').filter(|&end| end > 0) {
            set_variable(env, OsStr::from_bytes(&bytes[..end]), OsStr::from_bytes(&bytes[end + 1..]).to_owned());
        }
    }
}

fn set_variable(env: &mut Vec<(OsString, OsString)>, name: &OsStr, value: OsString) {
    match env.iter_mut().find(|(there, _)| there == name) {
        Some((_, old)) => *old = value,
        None => env.push((name.to_owned(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(env: &[(OsString, OsString)], name: &str) -> Option<String> {
        env.iter().find(|(there, _)| there == name).map(|(_, value)| value.to_string_lossy().into_owned())
    }

    #[test]
    fn the_environment_is_the_images_then_the_requests_with_the_scripts_first_in_path() {
        let user = User { home: "/home/app".into(), name: Some("app".into()), ..Default::default() };
        for (image, request, name, expected) in [
            (
                vec![],
                vec![],
                "PATH",
                Some("/.msb/scripts:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ),
            (vec!["PATH=/opt/bin"], vec![], "PATH", Some("/.msb/scripts:/opt/bin")),
            (vec!["PATH=/opt/bin"], vec!["PATH=/x:/.msb/scripts"], "PATH", Some("/x:/.msb/scripts")),
            (vec![], vec![], "HOME", Some("/home/app")),
            (vec!["HOME=/data"], vec![], "HOME", Some("/data")),
            (vec![], vec![], "USER", Some("app")),
            (vec!["A=1"], vec!["A=2", "A=a=b"], "A", Some("a=b")),
            (vec!["A=1"], vec!["A="], "A", Some("")),
            (vec!["=x", "no-assignment"], vec![], "", None),
            (vec![], vec![], "TERM", None),
        ] {
            let image: Vec<Text> = image.into_iter().map(Text::from).collect();
            let request = request.into_iter().map(Text::from).collect();
            let env = of_command(&image, request, &user, None);
            assert_eq!(value(&env, name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn an_exact_environment_is_the_requests_and_a_home() {
        let user = User { home: "/home/app".into(), name: Some("app".into()), ..Default::default() };
        let env = |request: &[&str]| {
            exact(request.iter().copied().map(Text::from).collect(), &user)
                .into_iter()
                .map(|(name, value)| format!("{}={}", name.display(), value.display()))
                .collect::<Vec<_>>()
        };
        assert_eq!(env(&["B=1", "A=x=y", "B=2"]), ["B=2", "A=x=y", "HOME=/home/app"]);
        assert_eq!(env(&["HOME="]), ["HOME="]);
    }
}
