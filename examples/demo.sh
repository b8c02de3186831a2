#!/bin/sh
# One picture from a dropped file, from start to end: what `make demo` runs.
# Works in demo/ (a root of its own) with the starter model: no download, no GPU.
set -eu
cd "$(dirname "$0")/.."
export STEADY_MODEL=starter
export STEADY_ROOT="$PWD/demo"
begun=$(date +%s)

steady -q init
touch "$STEADY_ROOT/.begun"
echo "Starting the service in demo/ ..."
steady serve --port 0 >"$STEADY_ROOT/serve.log" 2>&1 &
service=$!
show=
stop() {
    for process in $show $service; do kill "$process" 2>/dev/null || true; done
    wait 2>/dev/null || true
}
trap stop EXIT
trap 'exit 130' INT TERM

# A person would now copy a file into the folder that is watched. So do we. (It may be dropped
# before, or while nothing runs.)
cp examples/sunset.yaml "$STEADY_ROOT/inbox/sunset.yaml"
echo "Dropped examples/sunset.yaml into demo/inbox/:"
sed 's/^/    /' examples/sunset.yaml

# What happens, as it happens: that the model loads, how far the picture is.
until [ -e "$STEADY_ROOT/steady.db" ]; do
    kill -0 "$service" || { cat "$STEADY_ROOT/serve.log"; exit 1; }
    sleep 0.2
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
[ -s "$picture" ]

# Shown in the terminal where it can, in a window where there is a screen, else by its path alone.
if [ -t 1 ]; then
    case "${TERM_PROGRAM:-}:${TERM:-}" in
        iTerm.app:* | WezTerm:*) printf '\033]1337;File=inline=1:%s\a\n' "$(base64 <"$picture" | tr -d '\n')" ;;
        *:xterm-kitty) kitten icat "$picture" || true ;;
        *)
            if [ "$(uname)" = Darwin ]; then
                open "$picture" || true
            elif [ -n "${WAYLAND_DISPLAY:-}${DISPLAY:-}" ] && command -v xdg-open >/dev/null; then
                xdg-open "$picture" >/dev/null 2>&1 || true
            fi
            ;;
    esac
fi
echo
echo "1 picture in $(($(date +%s) - begun)) s, most of them to load the model:"
echo "    $picture"
echo "The file is done, and beside it lies what became of it:"
echo "    $result"
sed 's/^/    /' "$result"
echo
echo "That was a service in demo/, which stops now. One of your own:"
echo "    . .venv/bin/activate && steady --root studio init && steady --root studio serve"
