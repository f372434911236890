"""Parts of an experiment file that know nothing of the rest of it. Begin with `schedule`.

==================  ==================================================================
`field_types`       what every part of an experiment file is made of
`prices`            what devices cost, and draw
`schedule`          arrivals whose rate changes over time, and classes with their own
==================  ==================================================================
"""
