"""The report of a run as one page of HTML (`spikebert-run --report`).

contents.py  what is told, as plain data
raster.py    the spikes of one sentence; script.py draws them
chips.py     the cores of a bundle for Loihi 2
sections.py  each part of the page
page.py      the page, put together
"""
