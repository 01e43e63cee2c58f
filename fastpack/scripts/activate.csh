# Activates the environment this file lies in. For csh and tcsh:   source PREFIX/bin/activate.csh
# "deactivate" undoes it.

# No variable tells where a sourced file lies: this shell has it open while it reads it.
set _fp_self = ""
foreach _fp_fd ( /proc/$$/fd/* )
    set _fp_link = "`readlink $_fp_fd:q`"
    if ( "$_fp_link" =~ */bin/activate.csh ) set _fp_self = "$_fp_link"
end
set _fp_prefix = "$_fp_self:h:h"
set _fp_todo = 1
if ( "$_fp_self" == "" || ! -d "$_fp_prefix/conda-meta" ) then
    sh -c 'echo "activate: cannot tell where this environment lies" >&2'
    set _fp_todo = 0
else if ( -e "$_fp_prefix/.fastpack/incomplete" ) then
    sh -c 'echo "activate: $1 was not unpacked to its end; remove it and unpack the archive again" >&2' sh "$_fp_prefix"
    set _fp_todo = 0
else if ( $?_FASTPACK_PREFIX ) then
    if ( "$_FASTPACK_PREFIX" == "$_fp_prefix" ) then
        set _fp_todo = 0
    else
        source "$_FASTPACK_PREFIX/bin/deactivate.csh"
    endif
endif
if ( $_fp_todo ) then
    sh -c '[ ! -f "$1/.fastpack/relocations.json" ] || { state=$(cat "$1/.fastpack/state.json" 2>/dev/null) || state=; case "$state" in "") note="some files still lack this prefix; run $1/bin/conda-unpack once" ;; *"\"complete\": true"*) known=${state#*"\"prefix\": \""}; known=${known%%"\", \"target\""*}; case "$known" in "$1" | *\\*) note= ;; *) note="this environment was moved; run $1/bin/conda-unpack"; [ ! "$known" -ef "$1" ] || note= ;; esac ;; *) note="a relocation was interrupted; run $1/bin/conda-unpack" ;; esac; [ -z "$note" ] || echo "activate: $note" >&2; }' sh "$_fp_prefix"

    set _FASTPACK_PREFIX = "$_fp_prefix"
    if ( $?CONDA_PREFIX ) then
        set _FASTPACK_OLD_PREFIX = "$CONDA_PREFIX"
    endif
    if ( $?CONDA_DEFAULT_ENV ) then
        set _FASTPACK_OLD_NAME = "$CONDA_DEFAULT_ENV"
    endif
    if ( $?CONDA_PROMPT_MODIFIER ) then
        set _FASTPACK_OLD_MODIFIER = "$CONDA_PROMPT_MODIFIER"
    endif
    set _fp_level = 0
    if ( $?CONDA_SHLVL ) then
        set _FASTPACK_OLD_SHLVL = "$CONDA_SHLVL"
        if ( "$CONDA_SHLVL" =~ [0-9] || "$CONDA_SHLVL" =~ [1-9][0-9] ) set _fp_level = "$CONDA_SHLVL"
    endif
    @ _fp_level = $_fp_level + 1
    setenv CONDA_PREFIX "$_fp_prefix"
    setenv CONDA_DEFAULT_ENV "$_fp_prefix:t"
    setenv CONDA_SHLVL "$_fp_level"
    setenv CONDA_PROMPT_MODIFIER "($_fp_prefix:t) "
    setenv PATH "$_fp_prefix/bin:$PATH"
    if ( $?prompt ) then
        # A shell may expand what stands in a prompt: only a harmless name goes into it.
        set _FASTPACK_OLD_PROMPT = "$prompt"
        set _fp_name = "$CONDA_DEFAULT_ENV"
        if ( "$_fp_name" =~ *[^A-Za-z0-9._+-]* ) set _fp_name = env
        set prompt = "($_fp_name) $prompt"
        unset _fp_name
    endif
    alias deactivate 'source $_FASTPACK_PREFIX:q/bin/deactivate.csh'

    # Variables that conda keeps in JSON, by any Python that is there.
    if ( -f "$_fp_prefix/conda-meta/state" || -d "$_fp_prefix/etc/conda/env_vars.d" ) then
        # Through a file: no quotes hold the path in a command substitution.
        set _fp_code = "`mktemp`"
        sh -c 'exec sh "$1/.fastpack/variables" csh "$1" > "$2"' sh "$_fp_prefix" "$_fp_code"
        source "$_fp_code"
        rm -f "$_fp_code"
        unset _fp_code
    endif

    # Names by ls, and the directory not in quotes: tcsh finds nothing below a path with letters beyond ASCII.
    if ( -d "$_fp_prefix/etc/conda/activate.d" ) then
        set _fp_scripts = ( `cd $_fp_prefix:q/etc/conda/activate.d && env LC_ALL=C ls` )
        foreach _fp_script ( $_fp_scripts:q )
            if ( "$_fp_script" =~ *.csh ) source "$_fp_prefix/etc/conda/activate.d/$_fp_script"
        end
        unset _fp_script _fp_scripts
    endif
    rehash
    unset _fp_level
endif
unset _fp_self _fp_prefix _fp_todo _fp_fd _fp_link
