"""Reports: functions of a workbench and a window of time that give tables, and one HTML file that opens without a network.

`gather` asks the control API, `daily` makes sections of what it answered (pure), `page` and `write` turn them into files. None of it
imports Panel: importing panel-material-ui blanks exported pages, and nothing here needs a plot library.
"""
