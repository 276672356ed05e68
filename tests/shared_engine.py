"""What tests do with an engine that many of them share."""


def cancel_all_requests(engine):
    """Ends what is waiting or running. The engine stays open for the tests that follow."""
    with engine.condition:
        for handle in list(engine._state_by_handle):
            handle.cancel()
