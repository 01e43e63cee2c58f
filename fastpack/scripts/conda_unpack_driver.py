# The driver of bin/conda-unpack: _relocate_py.py and _place_py.py stand before it in one file.


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        sys.stderr.write("conda-unpack: " + text + "\n")


def _main(arguments: list[str]) -> int:
    prefix, options = arguments[0], arguments[1:]
    if "--help" in options or "-h" in options:
        print(
            "usage: conda-unpack [--quiet] [--version]\n\n"
            "Puts this environment's prefix into the files that name it. Only recorded places are touched; run it\n"
            "again after moving the environment. Files that came after unpacking are not looked at."
        )
        return 0
    if "--version" in options:
        print("conda-unpack (fastpack @VERSION@)")
        return 0
    unknown = [option for option in options if option not in ("--quiet", "-q", "--verbose", "-v")]
    if unknown:
        _say("unknown option %s; see --help" % unknown[0], False)
        return 2
    quiet = "--quiet" in options or "-q" in options
    started = now()
    try:
        with open(os.path.join(prefix, RELOCATIONS), "rb") as file:
            files = read_relocations(file.read())
        state = read_state(prefix)
    except FileNotFoundError:
        _say("%s has no %s: fastpack did not make this environment" % (prefix, RELOCATIONS), False)
        return 25
    except (KeyError, IndexError, TypeError, ValueError) as error:
        _say("the list of relocations or the state in %s/.fastpack is broken: %s" % (prefix, error), False)
        return 25
    raw = os.fsencode(prefix)
    if b"\n" in raw:
        _say("a prefix with a newline in it cannot be used", False)
        return 2
    limit = longest_prefix(files)
    if limit is not None and len(raw) > limit:
        _say(
            "the prefix is too long: %d bytes, at most %d fit; move the environment to a shorter path: %s"
            % (len(raw), limit, prefix),
            False,
        )
        return 20
    if state is not None and state["complete"] and state["prefix"] == prefix:
        _say("nothing to do: %s has its prefix already" % prefix, quiet)
        return 0
    archive_id = "@ARCHIVE@" if state is None else state.get("archive_id", "")
    previous = None if state is None else state["prefix"]
    try:
        # Not writable at all is said before anything changes.
        probe = os.path.join(prefix, ".fastpack", ".conda-unpack-probe")
        with open(probe, "wb"):
            pass
        os.unlink(probe)
        write_state(prefix, archive_id, previous, prefix, False)
        result = relocate_tree(prefix, prefix, files, {"prefix": previous, "target": prefix, "complete": False})
        write_state(prefix, archive_id, prefix, prefix, True)
    except OSError as error:
        _say("%s: %s; mend that and run it again" % (error.filename or prefix, error.strerror), False)
        return 23 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 15
    for path in result.left:
        _say("left as it is, since it was changed or removed after unpacking: %s" % path, False)
    _say(
        "%d files relocated, %d right already, %d left, %.1f s"
        % (len(result.written), len(result.unchanged), len(result.left), now() - started),
        quiet,
    )
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
