#!/bin/sh
# One line each; a test runs them all. STEADY_ROOT names the service's folder.
set -eu
cd "$(dirname "$0")"

# a picture, and a list of prompts from another program
steady submit "a red balloon over snowy mountains" --seed 7
printf 'a black cat on a yellow background\na red mushroom in the forest\n' | steady submit -
# the same table every evening: only what is missing or changed
steady submit --key prompts --resume prompts.csv
# smaller, and only shown
steady submit --set width=512 --set height=512 --dry-run list.yaml
# do all of it, then what failed and why
steady watch --once -q
steady list --state failed --json
# one picture four times with other seeds
picture=$(steady list --text "red balloon" --json | python3 -c 'import json, sys; print(json.loads(sys.stdin.readline())["path"])')
steady submit "$picture" --count 4
# tidy up
steady prune --older-than 30d
