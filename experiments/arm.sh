# For the studies' scripts: `arm NAME OVERRIDES...` runs one sweep, in the folder of that name below $out, or resumes it.
arm() {
    dir="$out/$1"
    shift
    if [ -e "$dir/sweep.json" ]; then
        python -m fsae.resume "$dir"
    else
        python -m fsae.run "hydra.sweep.dir=$dir" "$@"
    fi
}
