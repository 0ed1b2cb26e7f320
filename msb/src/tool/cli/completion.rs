//! Completions that know the running VMs, and the images and volumes of the store, in addition to the flags that clap's generator
//! knows.

use clap_complete::Shell;

/// Prints the names of running VMs, for any POSIX shell: those whose record is there and whose end is not.
const NAMES: &str = r#"    local run vm
    if [ -n "$MSB_RUN" ]; then run=$MSB_RUN; elif [ "$(id -u)" = 0 ]; then run=/run/msb; else run=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/msb; fi
    for vm in $(cd "$run" 2>/dev/null && echo *); do
        if [ -e "$run/$vm/record.json" ] && [ ! -e "$run/$vm/ended.json" ]; then echo "$vm"; fi
    done
"#;

/// Prints the references of images that were pulled from registries, and those of Docker Hub in their short form too.
const IMAGES: &str = r#"    cat "${MSB_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/msb}"/references/* 2>/dev/null |
        sed "s/ .*//; p; s|^docker.io/library/||; s|^docker.io/||" | sort -u
"#;

/// Prints the names of the volumes in the store.
const VOLUMES: &str = r#"    (cd "${MSB_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/msb}/volumes" 2>/dev/null && ls)
"#;

/// What a word of a command line that is not a flag may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    /// The name of a VM comes first.
    VmFirst,
    /// Names of VMs.
    Vms,
    /// An image.
    Image,
    /// A path of the host, or VM:PATH.
    Places,
    /// Something else.
    Other,
}

fn words(tool: &str) -> Words {
    match tool {
        "msb-exec" | "msb-stop" | "msb-snapshot" | "msb-logs" => Words::VmFirst,
        "msb-ls" | "msb-rm" | "msb-stats" => Words::Vms,
        "msb-run" | "msb-pull" => Words::Image,
        "msb-cp" => Words::Places,
        _ => Words::Other,
    }
}

/// The generated script with the names of VMs where `-r` or a NAME wants one, and with images where IMAGE or SOURCE does.
pub(super) fn with_names(shell: Shell, tool: &str, script: &[u8]) -> Vec<u8> {
    let script = String::from_utf8_lossy(script);
    let words = words(tool);
    let has_names =
        words != Words::Other || ["record", "volume"].iter().any(|flag| script.contains(&format!("--{flag}")));
    let has_names = has_names || (shell == Shell::Fish && script.contains("-l record"));
    let script = match shell {
        Shell::Bash if tool == "msb" => bash_of_front(&script),
        Shell::Bash if has_names => bash(tool, &script, words),
        Shell::Zsh if has_names => zsh(&script, words),
        Shell::Fish if has_names => fish(tool, &script, words),
        _ => script.into_owned(),
    };
    script.into_bytes()
}

fn bash(tool: &str, script: &str, words: Words) -> String {
    let generated = format!("_{}", tool.replace('-', "__"));
    let is_word = match words {
        Words::VmFirst => r#" || { [ "$COMP_CWORD" = 1 ] && [ "${2#-}" = "$2" ]; }"#,
        Words::Vms | Words::Image => r#" || { [ "${2#-}" = "$2" ] && [ "${3#-}" = "$3" ]; }"#,
        Words::Places => r#" || [ "${2#-}" = "$2" ]"#,
        Words::Other => "",
    };
    let names = match words {
        Words::Image => r#"-W "$(_msb_images)""#,
        Words::Places => r#"-S : -W "$(_msb_vms)""#,
        _ => r#"-W "$(_msb_vms)""#,
    };
    // A path follows what ends in a colon.
    let goes_on = if words == Words::Places { "\n    compopt -o nospace 2>/dev/null" } else { "" };
    let volume = if script.contains("--volume") {
        r#"    case $3:$2 in
    -v:*:* | --volume:*:*) ;;
    -v:* | --volume:*)
        mapfile -t COMPREPLY < <(compgen -S : -W "$(_msb_volumes)" -- "$2"; compgen -f -- "$2")
        compopt -o nospace 2>/dev/null
        return
        ;;
    esac
"#
    } else {
        ""
    };
    // A reference has colons, at which bash breaks words.
    let colons = if words == Words::Image {
        "\n    ! declare -F __ltrim_colon_completions >/dev/null || __ltrim_colon_completions \"$2\""
    } else {
        ""
    };
    format!(
        r#"{script}
_msb_vms() {{
{NAMES}}}

_msb_images() {{
{IMAGES}}}

_msb_volumes() {{
{VOLUMES}}}

{generated}_or_vms() {{
{volume}    case $3 in -r | --record) true ;; *) false ;; esac{is_word} || {{ {generated} "$@"; return; }}
    mapfile -t COMPREPLY < <(compgen {names} -- "$2"; compgen -f -- "$2"){goes_on}{colons}
}}

complete -F {generated}_or_vms -o bashdefault -o default {tool}
"#
    )
}

/// For msb: the tools, and behind one of them its own completion.
fn bash_of_front(script: &str) -> String {
    format!(
        r#"{script}
_msb_front() {{
    if [ "$COMP_CWORD" = 1 ] && [ "${{2#-}}" = "$2" ]; then
        mapfile -t COMPREPLY < <(compgen -W "doctor help $(compgen -c msb- | sort -u | sed 's/^msb-//')" -- "$2")
        return
    fi
    local tool=msb-${{COMP_WORDS[1]}} complete
    ! declare -F _completion_loader >/dev/null || _completion_loader "$tool"
    complete=$(complete -p "$tool" 2>/dev/null | sed -n 's/.*-F \([^ ]*\) .*/\1/p')
    [ -n "$complete" ] || return 0
    COMP_WORDS=("$tool" "${{COMP_WORDS[@]:2}}")
    COMP_CWORD=$((COMP_CWORD - 1))
    "$complete" "$tool" "$2" "$3"
}}

complete -F _msb_front -o bashdefault -o default msb
"#
    )
}

/// The value of `--volume` in a script for zsh.
const ZSH_VOLUME: &str = ":SRC|NAME:DST[:ro]";

fn zsh(script: &str, words: Words) -> String {
    let is_word = |line: &str| match words {
        Words::VmFirst | Words::Vms => line.starts_with("'*:") || line.starts_with("':name"),
        Words::Image => [":image ", ":source "].iter().any(|name| line.contains(name)) && line.starts_with("':"),
        Words::Places => line.starts_with("':source ") || line.starts_with("':target "),
        Words::Other => false,
    };
    let list = match words {
        Words::Image => "_msb_images_or_files",
        Words::Places => "_msb_places",
        _ => "_msb_vms_or_files",
    };
    let mut lines: Vec<String> = Vec::new();
    for line in script.lines() {
        let line = match line.rsplit_once(":_default'") {
            Some((before, after)) if is_word(line) => format!("{before}:{list}'{after}"),
            Some((before, after)) if before.ends_with(":NAME|FILE") => format!("{before}:_msb_vms_or_files'{after}"),
            Some((before, after)) if before.ends_with(ZSH_VOLUME) => {
                format!("{}:volume:_msb_volumes'{after}", before.trim_end_matches(ZSH_VOLUME))
            }
            _ => line.to_owned(),
        };
        let is_place = line.starts_with("autoload ");
        lines.push(line);
        if is_place {
            for (function, names) in [("places", NAMES), ("volumes", VOLUMES)] {
                lines.push(format!(
                    "\n_msb_{function}() {{\n    local -a names\n    names=(${{(f)\"$(\n{names}    )\"}})\n    compadd -S : -a names\n    _files\n}}"
                ));
            }
            for (name, names) in [("vms", NAMES), ("images", IMAGES)] {
                lines.push(format!("\n_msb_{name}() {{\n{names}}}"));
                lines.push(format!(
                    "\n_msb_{name}_or_files() {{\n    local -a names\n    names=(${{(f)\"$(_msb_{name})\"}})\n    compadd -a names\n    _files\n}}"
                ));
            }
        }
    }
    lines.join("\n") + "\n"
}

fn fish(tool: &str, script: &str, words: Words) -> String {
    let list = if words == Words::Image { "__msb_images" } else { "__msb_vms" };
    let first = match words {
        Words::Places => format!("complete -c {tool} -a '(__msb_vms | string replace -r \"\\$\" :)'\n"),
        Words::VmFirst => format!("complete -c {tool} -n 'test (count (commandline -opc)) -eq 1' -a '({list})'\n"),
        Words::Vms | Words::Image => format!("complete -c {tool} -a '({list})'\n"),
        Words::Other => String::new(),
    };
    let record = if script.contains("-l record") {
        format!("complete -c {tool} -s r -l record -r -a '(__msb_vms)'\n")
    } else {
        String::new()
    };
    let volume = if script.contains("-l volume") {
        format!("complete -c {tool} -s v -l volume -r -a '(__msb_volumes | string replace -r \"\\$\" :)'\n")
    } else {
        String::new()
    };
    let function = |name: &str, text: &str| format!("function {name}\n    sh -c '\n{text}'\nend\n");
    let functions = function("__msb_vms", &NAMES.replace("    local run vm\n", ""))
        + &function("__msb_images", IMAGES)
        + &function("__msb_volumes", VOLUMES);
    format!("{script}\n{functions}{first}{record}{volume}")
}
