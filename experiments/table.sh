# For the studies' scripts: `table HEADING MODULE ARGUMENTS...` prints the output of a module of experiments/ below a heading.
table() {
    printf '\n## %s\n\n' "$1"
    module=$2
    shift 2
    python -m "experiments.$module" "$@"
}
