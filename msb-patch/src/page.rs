//! What msb-patch's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

/// The page's texts.
pub const PAGE: Page = Page {
    operands: "",
    forms: &[],
    notes: &[("Operations", operations)],
    exit_status: man::EXIT_STATUS,
    environment: &[
        man::MSB_RECORD,
        man::MSB_HOME,
        (
            "SOURCE_DATE_EPOCH",
            "The modification time of everything that is made, in seconds since 1970 (see msb-ops(5))",
        ),
    ],
    files: &[("$MSB_HOME/sandboxes/ID", "A new upper, with its work directory and the record's scripts")],
    examples: &[
        ("an image and operations through one pipe", "{ msb-pull alpine; cat ops.jsonl; } | msb-patch > patched.json"),
        ("a dry run", "msb-patch -r image.json -f ops.jsonl -n"),
        (
            "an upper in the working directory, built from nothing",
            "msb-patch -r image.json -f ops.jsonl --upper ./upper --fresh \\\n  > patched.json",
        ),
        (
            "one more operation on an upper that is there",
            "echo '{\"op\":\"remove\",\"path\":\"/etc/motd\"}' |\n  msb-patch -r patched.json -o patched.json",
        ),
    ],
    see_also: &["msb-pull(1)", "msb-mount(1)", "msb-boot(1)", "msb-ops(5)", "msb-record(5)", "msb(7)"],
};

fn operations() -> String {
    r##"One JSON object each; msb-ops(5) describes them all.

  {"op":"text","path":"/etc/motd","content":"hi\n","replace":true}
  {"op":"mkdir","path":"/app","mode":"0755"}
  {"op":"copy_file","src":"./cert.pem","dst":"/etc/ssl/cert.pem"}
  {"op":"append","path":"/etc/hosts","content":"::1 app\n","once":true}
  {"op":"chown","path":"/app","uid":1000,"gid":1000,"recursive":true}
  {"op":"script","name":"setup","content":"#!/bin/sh\nexec id\n"}"##
        .into()
}
