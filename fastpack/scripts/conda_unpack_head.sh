#!/bin/sh
''':'
# bin/conda-unpack: puts this environment's own prefix into the files that name it. Made by fastpack @VERSION@.
# Run it once after plain tar extraction, and again whenever the environment has been moved.
# This head is sh and finds a Python; what follows is one Python text of the standard library alone.
fp_self=$0
case "$fp_self" in
    */*) ;;
    *) if [ -f "./$fp_self" ]; then fp_self=./$fp_self; else fp_self=$(command -v -- "$fp_self"); fi ;;
esac
# A link to this script is followed, but no link above it: the prefix is the path as typed.
while [ -L "$fp_self" ]; do
    fp_link=$(readlink -- "$fp_self") || break
    case "$fp_link" in
        /*) fp_self=$fp_link ;;
        *) fp_self=${fp_self%/*}/$fp_link ;;
    esac
done
fp_bin=${fp_self%/*}
fp_prefix=$(CDPATH= cd -- "$fp_bin/.." && pwd) || exit 1
if [ -e "$fp_prefix/.fastpack/incomplete" ]; then
    echo "conda-unpack: $fp_prefix was not unpacked to its end; remove it and unpack the archive again" >&2
    exit 25
fi
fp_system=$(uname -s 2>/dev/null)
fp_machine=$(uname -m 2>/dev/null)
if [ -n "$fp_machine" ] && [ "$fp_system-$fp_machine" != "@SYSTEM@-@MACHINE@" ]; then
    echo "conda-unpack: this environment is for @SYSTEM@ @MACHINE@, this machine is $fp_system $fp_machine" >&2
    exit 24
fi
fp_needs=@GLIBC@
if [ -n "$fp_needs" ] && [ -z "${FASTPACK_IGNORE_REQUIREMENTS:-}" ]; then
    fp_libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || fp_libc=
    fp_libc=${fp_libc##* }
    fp_libc=${fp_libc%%[!0-9.]*}
    fp_found="glibc $fp_libc"
    if [ -z "$fp_libc" ]; then
        case "$(ldd --version 2>&1)" in *musl*) fp_libc=0.0 fp_found=musl ;; *) fp_libc=$fp_needs ;; esac
    fi
    fp_major=${fp_libc%%.*} fp_minor=${fp_libc#*.}
    fp_minor=${fp_minor%%.*}
    fp_least=${fp_needs#*.}
    fp_least=${fp_least%%.*}
    if [ "$fp_major" -lt "${fp_needs%%.*}" ] ||
        { [ "$fp_major" -eq "${fp_needs%%.*}" ] && [ "$fp_minor" -lt "$fp_least" ]; }; then
        echo "conda-unpack: this environment needs glibc $fp_needs, this machine has $fp_found" >&2
        exit 24
    fi
fi
for fp_python in "$fp_prefix/bin/python" python3 python; do
    if command -v -- "$fp_python" >/dev/null 2>&1 &&
        "$fp_python" -I -B -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1; then
        exec "$fp_python" -I -B "$fp_bin/conda-unpack" "$fp_prefix" "$@"
    fi
done
echo "conda-unpack: no Python 3.8 or newer here, in $fp_prefix/bin or on PATH; install one, or unpack with fastpack" >&2
exit 1
'''
