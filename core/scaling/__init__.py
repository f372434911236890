"""Autoscalers: what one sees of a fleet, and says. Begin with `autoscaler`; `servetwin.core.fleets` does as it says.

==================  ========================================================================================
`autoscaler`        `Autoscaler`: what one sees of a fleet (`FleetState`), and says
`recent`            what came and ended in the last seconds
==================  ========================================================================================
"""
