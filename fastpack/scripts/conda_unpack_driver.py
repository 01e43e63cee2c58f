# The driver of bin/conda-unpack: _relocate_py.py and _place_py.py stand before it in one file.


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        sys.stderr.write("conda-unpack: " + text + "\n")


def _main(arguments: list[str]) -> int:
    if arguments and os.path.isdir(arguments[0]):
        prefix, options = arguments[0], arguments[1:]
    else:  # started as python bin/conda-unpack
        prefix, options = os.path.dirname(os.path.dirname(os.path.abspath(__file__))), arguments
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
    started = time.monotonic()
    try:
        lock_tree(prefix)  # till this process ends
        with open(os.path.join(prefix, RELOCATIONS), "rb") as file:
            files, directories, strict = read_table(file.read())
        state = read_state(prefix)
    except FileNotFoundError:
        _say("%s has no %s: fastpack did not make this environment" % (prefix, RELOCATIONS), False)
        return 25
    except OSError as error:
        _say("%s: %s" % (error.filename, error.strerror), False)
        return 15
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
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
    wide = None if raw.isascii() else ascii_only(files)
    if wide is not None:
        _say("the prefix must be ASCII, since %s names it in UTF-16 or UTF-32: %s" % (wide, prefix), False)
        return 21
    unfit = next((file for file in files if strict and not file.fits(raw)), None)
    if unfit is not None:
        _say(
            "the prefix is too long for %s, which has room for %d bytes, and the archive was packed with --strict: %s"
            % (unfit.path, unfit.room, prefix),
            False,
        )
        return 20
    obstacle = unwritable(prefix, files)
    if obstacle is not None:
        _say("not readable or not writable, so nothing was changed: %s" % obstacle, False)
        return 15
    try:
        begun = begin_state(prefix, state, prefix)
        result = relocate_tree(prefix, prefix, files, begun)
        write_state(prefix, begun["archive_id"], begun, result.signed, result.unsigned)
        set_directories(prefix, directories)
    except OSError as error:
        _say("%s: %s; mend that and run it again" % (error.filename or prefix, error.strerror), False)
        return 23 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 15
    for path in result.left:
        _say("left as it is, since it was changed or removed after unpacking: %s" % path, False)
    for path in result.unfit:
        _say("not relocated, since the prefix is longer than the one it was built for: %s" % path, False)
    for path in result.unsigned:
        _say("codesign could not sign it, so macOS may refuse to start it: %s" % path, False)
    if not result.written:
        _say("nothing to do: %s has its prefix already" % prefix, quiet)
        return 0
    _say(
        "%d files relocated, %d right already, %d left, %.1f s"
        % (len(result.written), len(result.unchanged), len(result.left), time.monotonic() - started),
        quiet,
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(_main(sys.argv[1:]))
    except KeyboardInterrupt:
        _say("interrupted; run it again to finish", False)
        sys.exit(130)
