# Activates the environment this file lies in. For nushell:   overlay use PREFIX/bin/activate.nu
# "deactivate" undoes it, and with it what else was set in between: nushell hides the overlay. Scripts of activate.d are not
# run: nushell can source only what it knows when it parses.
const self = path self

export-env {
    let prefix = $self | path dirname | path dirname
    if not ($prefix | path join conda-meta | path exists) {
        error make {msg: "activate: cannot tell where this environment lies"}
    }
    if ($prefix | path join .fastpack incomplete | path exists) {
        error make {msg: $"activate: ($prefix) was not unpacked to its end; remove it and unpack the archive again"}
    }
    if ($prefix | path join .fastpack relocations.json | path exists) {
        let state = $prefix | path join .fastpack state.json
        if not ($state | path exists) {
            print -e $"activate: some files still lack this prefix; run ($prefix)/bin/conda-unpack once"
        } else {
            let known = open --raw $state | from json
            if not ($known.complete? | default false) {
                print -e $"activate: a relocation was interrupted; run ($prefix)/bin/conda-unpack"
            } else if ($known.prefix | path expand) != ($prefix | path expand) {
                print -e $"activate: this environment was moved; run ($prefix)/bin/conda-unpack"
            }
        }
    }
    let name = $prefix | path basename
    let level = $env.CONDA_SHLVL? | default "0"
    let level = if $level =~ '^[0-9]+$' { ($level | into int) + 1 } else { 1 }
    let folder = $prefix | path join etc conda env_vars.d
    let tables = if ($folder | path exists) { ls -a $folder | get name | where ($it | str ends-with .json) | sort } else { [] }
    let state = $prefix | path join conda-meta state
    let variables = try {
        let kept = if ($state | path exists) { open --raw $state | from json | get env_vars? | default {} } else { {} }
        let all = $tables | each {|path| open --raw $path | from json } | append $kept | reduce --fold {} {|table, all| $all | merge $table }
        for row in ($all | transpose name value) {
            if ($row.value | describe) != string or $row.name !~ '^[A-Za-z_][A-Za-z0-9_]*$' {
                error make {msg: $"'($row.name)' is no variable's name and text"}
            }
        }
        $all
    } catch {|error|
        print -e $"activate: a table of variables in ($prefix) cannot be read \(($error.msg)\)"
        {}
    }
    let own = {
        CONDA_PREFIX: $prefix
        CONDA_DEFAULT_ENV: $name
        CONDA_SHLVL: ($level | into string)
        CONDA_PROMPT_MODIFIER: $"\(($name)\) "
        PATH: ($env.PATH | prepend ($prefix | path join bin))
    }
    # PATH is nushell's own list, and what stands in front of it is activation's.
    let rows = $variables | transpose name value | where name != "PATH"
    load-env ($rows | where value != "***unset***" | reduce --fold $own {|row, all| $all | upsert $row.name $row.value })
    for row in ($rows | where value == "***unset***") { hide-env --ignore-errors $row.name }
}

# Undo it.
export alias deactivate = overlay hide activate --keep-env [PWD]
