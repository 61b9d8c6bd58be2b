#!/bin/sh
# `chancellor ...`, but no endpoint that is open to all who reach the container.
set -eu
if [ "${1:-}" = serve ] && [ -z "${CHANCELLOR_SERVE_API_KEYS:-}" ] && [ -z "${CHANCELLOR_SERVE_API_KEY_FILE:-}" ]; then
    case " $* " in
    *" --api-key-file"*) ;;
    *)
        echo "There are no API keys. Set CHANCELLOR_SERVE_API_KEYS (comma-separated), or mount a file with one key a" \
            "line and set CHANCELLOR_SERVE_API_KEY_FILE to its path." >&2
        exit 64
        ;;
    esac
fi
exec chancellor "$@"
