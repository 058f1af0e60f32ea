# For studies' scripts: `arm NAME OVERRIDES...` is one sweep, in the folder of that name below $out. One that was begun is
# gone on with.
arm() {
    dir="$out/$1"
    shift
    if [ -e "$dir/sweep.json" ]; then
        python -m fsae.resume "$dir"
    else
        python -m fsae.run "hydra.sweep.dir=$dir" "$@"
    fi
}
