"""The export report: what a network is made of and what it does. `report.html` for people, `report.json` for machines.

observe.py   what nodes did on the golden inputs      accuracy.py  what training recorded of each stage
gather.py    all that goes into contents.py           panels.py, layout.py, drawing.py  the graph drawn
contents.py  what a report says, and its JSON         charts.py  all other pictures, as SVG too
write.py     both files                               page.py, sections.py, tables.py, style.py, markup.py  the HTML
"""
