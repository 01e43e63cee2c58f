# Activates the environment this file lies in. For PowerShell:   . PREFIX/bin/activate.ps1
# "deactivate" undoes it. (Not tested: no PowerShell was at hand.)

$_fpPrefix = (Resolve-Path (Join-Path $PSScriptRoot '..')).Path
if (-not (Test-Path -LiteralPath (Join-Path $_fpPrefix 'conda-meta'))) {
    Write-Error 'activate: cannot tell where this environment lies'
    return
}
if (Test-Path -LiteralPath (Join-Path $_fpPrefix '.fastpack/incomplete')) {
    Write-Error "activate: $_fpPrefix was not unpacked to its end; remove it and unpack the archive again"
    return
}
if (Test-Path -LiteralPath (Join-Path $_fpPrefix '.fastpack/relocations.json')) {
    $_fpState = Join-Path $_fpPrefix '.fastpack/state.json'
    if (-not (Test-Path -LiteralPath $_fpState)) {
        Write-Warning "activate: some files still lack this prefix; run $_fpPrefix/bin/conda-unpack once"
    } else {
        $_fpKnown = Get-Content -Raw -LiteralPath $_fpState | ConvertFrom-Json
        if (-not $_fpKnown.complete) {
            Write-Warning "activate: a relocation was interrupted; run $_fpPrefix/bin/conda-unpack"
        } elseif ($_fpKnown.prefix -ne $_fpPrefix) {
            Write-Warning "activate: this environment was moved; run $_fpPrefix/bin/conda-unpack"
        }
    }
}
if (Test-Path function:global:_fastpack_deactivate) { _fastpack_deactivate }

# Name -> value, and for each what it was before (null: not set).
$_fpValues = [ordered]@{}
$_fpLevel = 0
$null = [int]::TryParse($env:CONDA_SHLVL, [ref]$_fpLevel)
$_fpName = Split-Path -Leaf $_fpPrefix
$_fpValues['CONDA_PREFIX'] = $_fpPrefix
$_fpValues['CONDA_DEFAULT_ENV'] = $_fpName
$_fpValues['CONDA_SHLVL'] = [string]($_fpLevel + 1)
$_fpValues['CONDA_PROMPT_MODIFIER'] = "($_fpName) "
$_fpValues['PATH'] = (Join-Path $_fpPrefix 'bin') + [IO.Path]::PathSeparator + $env:PATH
$_fpTables = @()
$_fpFolder = Join-Path $_fpPrefix 'etc/conda/env_vars.d'
if (Test-Path -LiteralPath $_fpFolder) {
    foreach ($_fpFile in (Get-ChildItem -LiteralPath $_fpFolder -Filter '*.json' | Sort-Object Name)) {
        $_fpTables += Get-Content -Raw -LiteralPath $_fpFile.FullName | ConvertFrom-Json
    }
}
$_fpFile = Join-Path $_fpPrefix 'conda-meta/state'
if (Test-Path -LiteralPath $_fpFile) {
    $_fpTables += (Get-Content -Raw -LiteralPath $_fpFile | ConvertFrom-Json).env_vars
}
foreach ($_fpTable in $_fpTables) {
    if ($null -eq $_fpTable) { continue }
    foreach ($_fpProperty in $_fpTable.PSObject.Properties) {
        $_fpValues[$_fpProperty.Name] = if ($_fpProperty.Value -eq '***unset***') { $null } else { $_fpProperty.Value }
    }
}
$global:_FASTPACK_OLD = [ordered]@{}
foreach ($_fpKey in $_fpValues.Keys) {
    $global:_FASTPACK_OLD[$_fpKey] = [Environment]::GetEnvironmentVariable($_fpKey)
    [Environment]::SetEnvironmentVariable($_fpKey, $_fpValues[$_fpKey])
}
$global:_FASTPACK_PREFIX = $_fpPrefix

function global:_fastpack_prompt_before { '' }
if (Test-Path function:prompt) { Copy-Item function:prompt function:global:_fastpack_prompt_before }
function global:prompt { "$($env:CONDA_PROMPT_MODIFIER)$(_fastpack_prompt_before)" }

function global:_fastpack_deactivate {
    $scripts = Join-Path $global:_FASTPACK_PREFIX 'etc/conda/deactivate.d'
    if (Test-Path -LiteralPath $scripts) {
        foreach ($script in (Get-ChildItem -LiteralPath $scripts -Filter '*.ps1' | Sort-Object Name -Descending)) {
            . $script.FullName
        }
    }
    # Only our own entry leaves PATH: what was put there since stays.
    $bin = Join-Path $global:_FASTPACK_PREFIX 'bin'
    $separator = [IO.Path]::PathSeparator
    $left = [System.Collections.ArrayList]@($env:PATH -split [regex]::Escape($separator))
    $left.Remove($bin)
    foreach ($key in $global:_FASTPACK_OLD.Keys) {
        if ($key -ne 'PATH') { [Environment]::SetEnvironmentVariable($key, $global:_FASTPACK_OLD[$key]) }
    }
    $env:PATH = $left -join $separator
    Copy-Item function:_fastpack_prompt_before function:global:prompt
    Remove-Item function:_fastpack_prompt_before, function:_fastpack_deactivate, function:deactivate
    Remove-Variable -Scope Global _FASTPACK_OLD, _FASTPACK_PREFIX
}
function global:deactivate { _fastpack_deactivate }

$_fpFolder = Join-Path $_fpPrefix 'etc/conda/activate.d'
if (Test-Path -LiteralPath $_fpFolder) {
    foreach ($_fpFile in (Get-ChildItem -LiteralPath $_fpFolder -Filter '*.ps1' | Sort-Object Name)) { . $_fpFile.FullName }
}
Get-Variable -Name '_fp*' | Remove-Variable
