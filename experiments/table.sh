# For studies' scripts: `table HEADING MODULE ARGUMENTS...` is what a module of experiments/ prints, below a heading.
table() {
    printf '\n## %s\n\n' "$1"
    module=$2
    shift 2
    python -m "experiments.$module" "$@"
}
