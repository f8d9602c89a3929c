#!/bin/sh
# A cluster in the folder $STORE, as far as secrets.sh asks for one: get secrets, get secret NAME, and create from
# standard input. A secret is a file NAME.KEY for each key, in base64 as the API server gives it.
case "$*" in
  *"get secrets") [ ! -e "$STORE/down" ] ;;
  *"get secret "*" --output jsonpath={.data."*) key=${7#*.data.} && cat "$STORE/$5.${key%\}}" ;;
  *"get secret "*) ls "$STORE/$5".* >/dev/null 2>&1 ;;
  *create*) exec python3 -c '
import base64, json, os, sys
found = json.load(sys.stdin)
name = found["metadata"]["name"]
for key, value in found["stringData"].items():
    with open(os.open(os.path.join(os.environ["STORE"], f"{name}.{key}"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(base64.b64encode(value.encode()).decode())
print(f"secret/{name} created")' ;;
  *) exit 9 ;;
esac
