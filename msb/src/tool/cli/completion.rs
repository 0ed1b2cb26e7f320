//! Completions that know the running VMs, in addition to the flags that clap's generator knows.

use clap_complete::Shell;

/// Prints the names of running VMs, for any POSIX shell: those whose record is there and whose end is not.
const NAMES: &str = r#"    local run vm
    if [ -n "$MSB_RUN" ]; then run=$MSB_RUN; elif [ "$(id -u)" = 0 ]; then run=/run/msb; else run=$XDG_RUNTIME_DIR/msb; fi
    for vm in $(cd "$run" 2>/dev/null && echo *); do
        if [ -e "$run/$vm/record.json" ] && [ ! -e "$run/$vm/ended.json" ]; then echo "$vm"; fi
    done
"#;

/// The generated script with the names of VMs where `-r` or a NAME wants one.
pub(super) fn with_vm_names(shell: Shell, tool: &str, script: &[u8]) -> Vec<u8> {
    let script = String::from_utf8_lossy(script);
    let takes_record = script.contains("--record");
    // Where a VM is named by the first word.
    let by_word = matches!(tool, "msb-exec" | "msb-stop");
    let script = match shell {
        Shell::Bash if takes_record => bash(tool, &script, by_word),
        Shell::Zsh if takes_record => zsh(&script, by_word),
        _ => script.into_owned(),
    };
    script.into_bytes()
}

fn bash(tool: &str, script: &str, by_word: bool) -> String {
    let generated = format!("_{}", tool.replace('-', "__"));
    let first = if by_word { r#" || { [ "$COMP_CWORD" = 1 ] && [ "${2#-}" = "$2" ]; }"# } else { "" };
    format!(
        r#"{script}
_msb_vms() {{
{NAMES}}}

{generated}_or_vms() {{
    case $3 in -r | --record) true ;; *) false ;; esac{first} || {{ {generated} "$@"; return; }}
    mapfile -t COMPREPLY < <(compgen -W "$(_msb_vms)" -- "$2"; compgen -f -- "$2")
}}

complete -F {generated}_or_vms -o bashdefault -o default {tool}
"#
    )
}

fn zsh(script: &str, by_word: bool) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in script.lines() {
        let is_word = by_word && line.starts_with("'*::");
        let line = match line.rsplit_once(":_default'") {
            Some((before, after)) if is_word || before.ends_with(":NAME|FILE") => {
                format!("{before}:_msb_vms_or_files'{after}")
            }
            _ => line.to_owned(),
        };
        let is_place = line.starts_with("autoload ");
        lines.push(line);
        if is_place {
            lines.push(format!("\n_msb_vms() {{\n{NAMES}}}"));
            lines.push("\n_msb_vms_or_files() {\n    local -a vms\n    vms=(${(f)\"$(_msb_vms)\"})\n    compadd -a vms\n    _files\n}".into());
        }
    }
    lines.join("\n") + "\n"
}
