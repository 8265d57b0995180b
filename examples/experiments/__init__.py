"""What the scripts of the paper's experiments share, and the benchmarks with them.

A run is one network: an architecture, a condition, a strength β and a seed. It is
trained, measured and attacked, and leaves one JSON file. A run whose file exists is not
repeated, so a script can be stopped or killed at any time and started again. All
scripts write to the same folder and share the runs in it.

The modules, in the order in which a script goes through them:

    command_line  the options, and what every script does with them
    conditions    the architectures and conditions that are compared, and their names
    presets       sizes, epochs and rates: `smoke`, `cpu`, `evidence` and `paper`
    settings      from options, conditions and preset to the settings of each run
    data          the data sets
    all_runs      performs the runs that have no file yet
    progress      prints how far they are, and how long the rest will take
    one_run       trains, measures and attacks one network
    networks      builds and compiles that network
    results       the JSON files
    figures       which figures the results make, numbered as in the paper
    panels        what is drawn in them
    looks         colours, lines and markers
    comparisons   figures of widths, exponents and matched trainings
    matching      which training of each penalty is the best, and which β
    table         the printed tables
"""
