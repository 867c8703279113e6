"""Feeds that give a reason to look: from CSV, HTTP and FHIR into the store, and from there on.

A source (`source`, `web`) tells rows (`tables` of CSV, `fhir` of resources), in which patients are
tokens already; `load` puts them into the store, and `loaded` makes of what is there what detection
asks.
"""
