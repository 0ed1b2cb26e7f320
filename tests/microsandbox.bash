# shellcheck shell=bash
# microsandbox, which the benchmarks compare with: the program from its published wheel, in target/fixtures.
#
#   source tests/image.bash; source tests/microsandbox.bash; microsandbox_fetch; microsandbox load …

microsandbox_version=0.7.11
# shellcheck disable=SC2154 # image.bash sets image_fixtures
microsandbox_dir=$image_fixtures/microsandbox-$microsandbox_version

# microsandbox_fetch: prints the directory with the program and its kernel, fetched once. Fails with a message if that fails.
microsandbox_fetch() {
    local scratch
    if [[ ! -d $microsandbox_dir ]]; then
        mkdir -p "$image_fixtures"
        scratch=$(mktemp -d "$image_fixtures/.microsandbox.XXXXXX")
        if ! { python3 -m pip download -q --no-deps -d "$scratch" "microsandbox==$microsandbox_version" &&
            (cd "$scratch" && python3 -m zipfile -e ./*.whl .); } >&2; then
            echo "microsandbox $microsandbox_version could not be fetched with pip: it is not in the comparison" >&2
            rm -rf "$scratch"
            return 1
        fi
        chmod 0755 "$scratch"/microsandbox/_bundled/bin/msb
        mv -T "$scratch/microsandbox/_bundled" "$microsandbox_dir" 2>/dev/null || [[ -d $microsandbox_dir ]]
        rm -rf "$scratch"
    fi
    printf '%s\n' "$microsandbox_dir"
}

# microsandbox ARG…: runs the program with its state in $work. Its variables have the same names as ours.
# shellcheck disable=SC2154 # bench.bash sets work
microsandbox() {
    env -u MSB_HOME HOME="$work/microsandbox" "$microsandbox_dir/bin/msb" "$@" </dev/null
}
