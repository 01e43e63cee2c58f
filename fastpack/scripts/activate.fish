# Activates the environment this file lies in:   source PREFIX/bin/activate.fish
# "deactivate" undoes it.

function _fastpack_activate
    set -l self $argv[1]
    # By sh: a command substitution of fish would change the user's own directory.
    set -l prefix (sh -c 'CDPATH= cd -- "$1/.." && pwd' sh (dirname -- "$self"))
    if test -z "$prefix"; or not test -d "$prefix/conda-meta"
        echo "activate: cannot tell where this environment lies; give the script's full path" >&2
        return 1
    end
    if test -e "$prefix/.fastpack/incomplete"
        echo "activate: $prefix was not unpacked to its end; remove it and unpack the archive again" >&2
        return 1
    end
    if set -q _FASTPACK_PREFIX; and functions -q _fastpack_deactivate
        if test "$_FASTPACK_PREFIX" = "$prefix"
            return 0
        end
        _fastpack_deactivate
    end
    if test -f "$prefix/.fastpack/relocations.json"
        if not test -f "$prefix/.fastpack/state.json"
            echo "activate: some files still lack this prefix; run $prefix/bin/conda-unpack once" >&2
        else
            set -l state (command cat "$prefix/.fastpack/state.json" | string collect)
            set -l known (string match -r '"prefix": "([^"\\\\]*)", "target"' -- "$state")[2]
            if not string match -q '*"complete": true*' -- "$state"
                echo "activate: a relocation was interrupted; run $prefix/bin/conda-unpack" >&2
            else if test -n "$known"; and test "$known" != "$prefix"
                if test "$known" -ef "$prefix"
                    set prefix $known
                else
                    echo "activate: this environment was moved; run $prefix/bin/conda-unpack" >&2
                end
            end
        end
    end
    for name in CONDA_PREFIX CONDA_DEFAULT_ENV CONDA_SHLVL CONDA_PROMPT_MODIFIER
        set -e _FASTPACK_OLD_$name
        if set -q $name
            set -g _FASTPACK_OLD_$name $$name
        end
    end
    set -g _FASTPACK_PREFIX $prefix
    set -gx CONDA_PREFIX $prefix
    set -gx CONDA_DEFAULT_ENV (basename -- "$prefix")
    set -l level 0
    if set -q CONDA_SHLVL; and string match -q -r '^[0-9]+$' -- "$CONDA_SHLVL"
        set level $CONDA_SHLVL
    end
    set -gx CONDA_SHLVL (math $level + 1)
    set -gx CONDA_PROMPT_MODIFIER "($CONDA_DEFAULT_ENV) "
    set -gx PATH "$prefix/bin" $PATH

    if functions -q fish_prompt; and not functions -q _fastpack_old_prompt
        functions -c fish_prompt _fastpack_old_prompt
        function fish_prompt
            set -l last $status
            echo -n "$CONDA_PROMPT_MODIFIER"
            sh -c "exit $last"
            _fastpack_old_prompt
        end
    end

    # Of a name that no other tool's deactivate takes away.
    function _fastpack_deactivate -d 'Undo bin/activate.fish'
        set -l scripts $_FASTPACK_PREFIX/etc/conda/deactivate.d/*.fish
        for script in $scripts[-1..1]
            source $script
        end
        for name in $_FASTPACK_VARIABLES
            set -l old _FASTPACK_OLD_VAR_$name
            if set -q $old
                set -gx $name $$old
            else
                set -e $name
            end
            set -e $old
        end
        set -e _FASTPACK_VARIABLES
        # Only our own entry leaves PATH: what was put there since stays.
        if set -l index (contains -i -- "$_FASTPACK_PREFIX/bin" $PATH)
            set -e PATH[$index]
        end
        for name in CONDA_PREFIX CONDA_DEFAULT_ENV CONDA_SHLVL CONDA_PROMPT_MODIFIER
            set -l old _FASTPACK_OLD_$name
            if set -q $old
                set -gx $name $$old
            else
                set -e $name
            end
            set -e $old
        end
        if functions -q _fastpack_old_prompt
            functions -e fish_prompt
            functions -c _fastpack_old_prompt fish_prompt
            functions -e _fastpack_old_prompt
        end
        set -e _FASTPACK_PREFIX
        functions -e deactivate _fastpack_deactivate
    end

    function deactivate -d 'Undo bin/activate.fish'
        _fastpack_deactivate
    end

    # Variables that conda keeps in JSON, by any Python that is there.
    if test -f "$prefix/conda-meta/state"; or test -d "$prefix/etc/conda/env_vars.d"
        sh "$prefix/.fastpack/variables" fish "$prefix" | source
    end

    for script in $prefix/etc/conda/activate.d/*.fish
        source $script
    end
    return 0
end

_fastpack_activate (status filename)
set -l _fastpack_status $status
functions -e _fastpack_activate
test $_fastpack_status -eq 0
