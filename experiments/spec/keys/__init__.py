"""Parts of an experiment file that know nothing of the rest of it. Begin with `schedule`.

===================  ==================================================================
`autoscaler`         replicas that come and go, and what their start takes
`faults`             devices and workers that fail, and what is done about it
`host_factors`       how many times as slow as its profile's the host of an engine is
`memory`             cards whose memory several models share
`field_types`        what every part of an experiment file is made of
`prices`             what devices cost, and draw
`routing`            which of several workers a request goes to; hand-overs from prefill to decode
`schedule`           arrivals whose rate changes over time, and classes with their own
===================  ==================================================================
"""
