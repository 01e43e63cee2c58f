''':'
# For sh and for Python: run as   sh PREFIX/.fastpack/variables SHELL PREFIX
for python in "$2/bin/python" python3 python; do
    if "$python" -I -c "" >/dev/null 2>&1; then
        exec "$python" -I "$0" "$@"
    fi
done
echo "activate: no Python is there to read the variables in $2/conda-meta/state" >&2
exit 1
'''
