# Undoes bin/activate.csh: what its alias "deactivate" reads.
if ( $?_FASTPACK_PREFIX ) then
    if ( -d "$_FASTPACK_PREFIX/etc/conda/deactivate.d" ) then
        set _fp_scripts = ( `cd $_FASTPACK_PREFIX:q/etc/conda/deactivate.d && env LC_ALL=C ls -r` )
        foreach _fp_script ( $_fp_scripts:q )
            if ( "$_fp_script" =~ *.csh ) source "$_FASTPACK_PREFIX/etc/conda/deactivate.d/$_fp_script"
        end
        unset _fp_script _fp_scripts
    endif
    if ( $?_FASTPACK_VARIABLES ) then
        foreach _fp_name ( $_FASTPACK_VARIABLES )
            unsetenv $_fp_name
        end
        foreach _fp_name ( $_FASTPACK_HAD_VARIABLES )
            eval setenv $_fp_name \$_FASTPACK_OLD_VAR_${_fp_name}:q
            unset _FASTPACK_OLD_VAR_$_fp_name
        end
        unset _FASTPACK_VARIABLES _FASTPACK_HAD_VARIABLES _fp_name
    endif
    # Only our own entry leaves PATH: what was put there since stays.
    set _fp_path = ()
    set _fp_done = 0
    foreach _fp_folder ( $path:q )
        if ( ! $_fp_done && "$_fp_folder" == "$_FASTPACK_PREFIX/bin" ) then
            set _fp_done = 1
        else
            set _fp_path = ( $_fp_path:q "$_fp_folder" )
        endif
    end
    set path = ( $_fp_path:q )
    unset _fp_path _fp_done _fp_folder
    if ( $?_FASTPACK_OLD_PREFIX ) then
        setenv CONDA_PREFIX "$_FASTPACK_OLD_PREFIX"
    else
        unsetenv CONDA_PREFIX
    endif
    if ( $?_FASTPACK_OLD_NAME ) then
        setenv CONDA_DEFAULT_ENV "$_FASTPACK_OLD_NAME"
    else
        unsetenv CONDA_DEFAULT_ENV
    endif
    if ( $?_FASTPACK_OLD_SHLVL ) then
        setenv CONDA_SHLVL "$_FASTPACK_OLD_SHLVL"
    else
        unsetenv CONDA_SHLVL
    endif
    if ( $?_FASTPACK_OLD_MODIFIER ) then
        setenv CONDA_PROMPT_MODIFIER "$_FASTPACK_OLD_MODIFIER"
    else
        unsetenv CONDA_PROMPT_MODIFIER
    endif
    if ( $?_FASTPACK_OLD_PROMPT ) then
        set prompt = "$_FASTPACK_OLD_PROMPT"
    endif
    unset _FASTPACK_PREFIX
    unset _FASTPACK_OLD_PREFIX _FASTPACK_OLD_NAME _FASTPACK_OLD_SHLVL _FASTPACK_OLD_MODIFIER _FASTPACK_OLD_PROMPT
    unalias deactivate
    rehash
endif
