# shellcheck shell=bash
# A manifest of a tree, to compare two trees.
#
#   source tests/tree.bash; diff <(tree_manifest A) <(tree_manifest B)

# tree_manifest DIR [PATH…]: prints a line for every path below DIR, or below these paths in it, with type, mode, owner and mtime, for
# files size, link count and sha256, for symlinks the target, and a line for every xattr; sorted. Left out are sizes and link counts of
# directories, which depend on the file system, and overlayfs's xattrs and whiteouts: compare merged trees.
tree_manifest() (
    cd "$1" || exit
    shift
    [ $# -gt 0 ] || set -- .
    export LC_ALL=C
    {
        find "$@" -type d -printf 'd %m %U:%G %T@ %p\n'
        find "$@" ! -type d ! -type l ! -type f -printf '%y %m %U:%G %T@ %n %p\n'
        find "$@" -type l -printf 'l %m %U:%G %T@ %p -> %l\n'
        find "$@" -type f -printf 'f %m %U:%G %T@ %n %s %p\n'
        find "$@" \( -type c -o -type b \) -print0 | xargs -0 -r stat -c 'dev %t:%T %n'
        find "$@" -type f -print0 | xargs -0 -r sha256sum
        find "$@" -print0 | xargs -0 -r getfattr -h -d -m - -e hex --absolute-names 2>/dev/null |
            awk '/^# file: /{file = substr($0, 9); next} /^$/{next} !/overlay\./{print "xattr", file, $0}'
    } | sort
)
