#!/bin/sh
# One picture from a dropped file, from start to end: what `make demo` runs.
# Works in demo/ (a root of its own) with the starter model: no download, no GPU.
set -eu
cd "$(dirname "$0")/.."
export STEADY_MODEL=starter
export STEADY_ROOT="$PWD/demo"

steady -q init
echo "Starting the service in demo/ ..."
steady serve --port 0 2>"$STEADY_ROOT/serve.log" &
service=$!
show=
stop() {
    for process in $show $service; do kill "$process" 2>/dev/null || true; done
    wait 2>/dev/null || true
}
trap stop EXIT
trap 'exit 130' INT TERM

# A person would now copy a file into the folder that is watched. So do we.
touch "$STEADY_ROOT/.begun"
cp examples/sunset.yaml "$STEADY_ROOT/inbox/sunset.yaml"
echo "Dropped examples/sunset.yaml into demo/inbox/:"
sed 's/^/    /' examples/sunset.yaml

# Until the watcher answers. (The file may be dropped before, or while nothing runs.)
seconds=0
until steady -q status 2>/dev/null || [ "$seconds" -ge 60 ]; do
    sleep 1
    seconds=$((seconds + 1))
done
steady follow &
show=$!

# When all pictures of a file exist, the file lies in inbox/done/ with a result beside it.
seconds=0
while :; do
    result=$(find "$STEADY_ROOT/inbox/done" -name 'sunset~*.result.json' -newer "$STEADY_ROOT/.begun" 2>/dev/null | head -n 1)
    [ -z "$result" ] || break
    if ! kill -0 "$service" 2>/dev/null || [ "$seconds" -ge 180 ]; then
        echo "No picture after $seconds s. The service said:" >&2
        tail -n 20 "$STEADY_ROOT/serve.log" >&2
        exit 1
    fi
    sleep 1
    seconds=$((seconds + 1))
done
kill "$show" 2>/dev/null || true
wait "$show" 2>/dev/null || true
show=

picture=$(steady list -n 1 --json | python -c 'import json, sys; print(json.loads(sys.stdin.readline())["path"])')
echo
echo "The result file  $result"
sed 's/^/    /' "$result"
echo
echo "The picture      $picture"
[ -s "$picture" ]
echo "Now stopping the service; everything it made stays in demo/."
