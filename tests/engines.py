"""What tests do with an engine that many of them share."""


def cancel_all(engine):
    """Ends what is waiting or running. The engine stays open for the tests that follow."""
    with engine.work:
        for handle in list(engine._jobs):
            handle.cancel()
