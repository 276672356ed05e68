"""Fixtures of the guides' classes: a server of pictures, and the reference's processors."""

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import PIL.Image
import pytest

from compat.processors_tiny import WIDE, reference
from processing.pictures_tiny import EXIF_ORIENTATION_TAG

__all__ = ["reference"]


class PictureHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/wide.png"):
            self.send_picture(200, WIDE)
        elif self.path.startswith("/turned.png"):
            self.send_picture(200, WIDE.transpose(PIL.Image.Transpose.ROTATE_90), orientation=6)
        else:
            self.send_error(404)

    def send_picture(self, status, image, orientation=1):
        exif, body = PIL.Image.Exif(), io.BytesIO()
        exif[EXIF_ORIENTATION_TAG] = orientation
        image.save(body, "PNG", exif=exif)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.getvalue())))
        self.end_headers()
        self.wfile.write(body.getvalue())

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def picture_server_url():
    """Address of a server with wide.png, and turned.png, which is the same on its side with a tag that says so."""
    with ThreadingHTTPServer(("127.0.0.1", 0), PictureHandler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
