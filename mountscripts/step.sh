# A long step of a script, shown as one line with its seconds. Sourced, not run.
#
# Invariant: what a step started ends with it: on failure, when its time is up, and when the script ends
# (call step_end from the EXIT trap). What a step prints is shown only if it fails.

step_pid='' step_log=''

# step TITLE SECONDS COMMAND…: runs the command (a function will do) in a subshell of its own process group;
# ends the script with status 1 if it fails or lasts longer.
step() {
    local title=$1 end=$((SECONDS + $2)) begin=$SECONDS status=0
    shift 2
    [ -n "$step_log" ] || step_log=$(mktemp)
    printf '%-58s' "$title"
    set -m
    (set +m && "$@") </dev/null >"$step_log" 2>&1 &
    step_pid=$!
    set +m
    while kill -0 "$step_pid" 2>/dev/null && [ $SECONDS -lt $end ]; do
        step_show "$title" $((SECONDS - begin))
        sleep 0.2
    done
    if kill -0 "$step_pid" 2>/dev/null; then
        kill_group "$step_pid"
        step_fail "$title: not done after $((SECONDS - begin)) s"
    fi
    wait "$step_pid" || status=$?
    step_pid=''
    [ $status = 0 ] || step_fail "$title: failed"
    step_show "$title" $((SECONDS - begin))
    [ -t 1 ] || printf '%4d s' $((SECONDS - begin))
    printf '\n'
}

# Only a terminal can rewrite its line.
step_show() { [ ! -t 1 ] || printf '\r%-58s%4d s' "$1" "$2"; }

step_fail() {
    printf '\n'
    tail -n 25 "$step_log"
    echo "$1" >&2
    exit 1
}

step_end() {
    [ -z "$step_pid" ] || kill_group "$step_pid"
    [ -z "$step_log" ] || rm -f "$step_log"
    step_pid='' step_log=''
}

# Asks the group to end, and insists after five seconds.
kill_group() {
    local tries=50
    kill -TERM -- "-$1" 2>/dev/null
    while kill -0 -- "-$1" 2>/dev/null && [ $((tries -= 1)) -gt 0 ]; do sleep 0.1; done
    kill -KILL -- "-$1" 2>/dev/null
    wait "$1" 2>/dev/null
}
