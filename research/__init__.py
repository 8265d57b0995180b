"""The paper's networks and trainings, and what was found with them.

A run is one network: an architecture, a condition, a strength β and a seed. It is
trained, measured and attacked, and leaves one JSON file. Its settings and its results
are plain dictionaries, and so is a row of the table in which results are kept.

    python -m research.train --preset smoke    # trains networks
    python -m research.results                 # prints and draws what is in the table

The modules, in the order in which these go through them:

    train         the command that trains
    experiments   which runs an experiment has
    conditions    the architectures and conditions that are compared, and their names
    presets       sizes, epochs and rates: `smoke`, `cpu`, `evidence` and `paper`
    settings      from a preset to the settings of each run
    data          the data sets
    runs          performs the runs that have no file yet
    training      trains, measures and attacks one network
    networks      builds and compiles that network
    matching      which training of each penalty is the best, and which β
    results       the command that shows results
    table         what is kept of them
    printed       the printed tables
    figures       which figures the paper's experiments make
    comparisons   figures of widths, exponents and matched trainings
    panels, looks  what is drawn in them; colours, lines and markers
"""
