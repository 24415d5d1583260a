"""Where to look first for the strength of a method, which counts in each method's own unit."""

BY_LENGTH = "--relative-T 0.05 to 0.4 is where to look first."
BY_PART = "--T 1 is the published map; less goes a part of the way."
STARTING_POINTS = {
    "repe": BY_LENGTH,
    "iti": BY_LENGTH,
    "caa": "--T 1 is the published strength; look from 0.25 to 2.",
    "mimic": BY_PART,
    "hpr": BY_PART,
    "recontrol": "--T counts steps of gradient ascent, 30 as published; look from 1 up.",
    "linearact": BY_PART,
    "truthflow": "--T counts corrections, 1.5 as published; look from 0.05 up.",
    "stepodesteer": BY_LENGTH,
    "odesteer": BY_LENGTH,
}
