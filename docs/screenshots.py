"""Takes screenshots of every page of the built site, and measures what a reader meets.

    mkdocs build --strict
    python docs/screenshots.py                    # all pages, some minutes
    python docs/screenshots.py results theory     # these only

It needs the extra `docs`, and Chromium with its driver (Debian: `chromium` and
`chromium-driver`). Each page is opened at 1400 and 400 pixels, light and dark, and has
a picture in `screenshots/`. The script fails, and says where, if

- a page scrolls sideways,
- a table or formula is cut at 1400 pixels (at 400, these scroll by themselves),
- the browser reports an error, or
- a page loads anything from another host.
"""

import argparse
import base64
import functools
import http.server
import pathlib
import shutil
import threading

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

WIDTHS = (1400, 400)
SCHEMES = ("light", "dark")
HEIGHT = 1000

# The boxes that cut what they hold, and scroll it, with the text that they begin with.
MEASURE = """
const cut = [...document.querySelectorAll(".md-typeset__scrollwrap, .formula")]
  .filter(box => box.scrollWidth > box.clientWidth + 1);
const root = document.documentElement;
// What reaches over the right edge, unless a box around it cuts it.
const holds = element => ["auto", "hidden", "scroll", "clip"].includes(
  getComputedStyle(element).overflowX);
const held = element => element.parentElement !== root && element.parentElement &&
  (holds(element.parentElement) || held(element.parentElement));
const beyond = [...document.querySelectorAll(".md-content *")].filter(element =>
  element.getBoundingClientRect().right > root.clientWidth + 1 && !held(element));
const text = element => element.textContent.trim().replace(/\\s+/g, " ").slice(0, 60);
return {
  cut: cut.map(text),
  sideways: root.scrollWidth > root.clientWidth,
  beyond: beyond.map(element => element.tagName + " " + text(element)).slice(0, 3),
  dark: document.body.dataset.mdColorScheme === "slate",
  height: root.scrollHeight,
  foreign: performance.getEntriesByType("resource").map(entry => entry.name)
    .filter(name => !name.startsWith(location.origin) && !name.startsWith("data:")),
};
"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", help="such as results; default: all")
    parser.add_argument("--site", type=pathlib.Path, default="site")
    parser.add_argument("--output", type=pathlib.Path, default="screenshots")
    args = parser.parse_args(argv)

    pages = [path.parent for path in sorted(args.site.rglob("index.html"))]
    pages = [page.relative_to(args.site).as_posix() for page in pages]
    pages = [page for page in pages if not args.pages or page in args.pages]
    if not pages:
        raise SystemExit(f"No such pages in {args.site}: build the site first.")
    args.output.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(QuietHandler, directory=args.site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"

    browser = open_browser()
    try:
        faults = [
            f"{page} at {width} pixels, {scheme}: {fault}"
            for page in pages
            for width in WIDTHS
            for scheme in SCHEMES
            for fault in look(browser, address, page, width, scheme, args.output)
        ]
    finally:
        browser.quit()
        server.shutdown()
    for fault in faults:
        print(fault)
    print(f"{len(pages)} pages, {len(faults)} faults, pictures in {args.output}")
    if faults:
        raise SystemExit(1)


def open_browser():
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = shutil.which("chromium")
    service = Service(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    # A scheme that the page remembers would win over the one that is emulated.
    source = {"source": "if (location.protocol !== 'about:') localStorage.clear()"}
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    return browser


def look(browser, address, page, width, scheme, folder):
    """Takes the picture of a page, and returns what is wrong with it."""
    command = browser.execute_cdp_cmd

    def resize(height):
        metrics = {"width": width, "height": height}
        command(
            "Emulation.setDeviceMetricsOverride",
            {**metrics, "deviceScaleFactor": 1, "mobile": False},
        )

    browser.get("about:blank")
    resize(HEIGHT)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    command("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(f"{address}/{page}/")
    browser.execute_async_script("document.fonts.ready.then(arguments[0])")
    measured = browser.execute_script(MEASURE)

    resize(measured["height"])  # so that pictures are loaded that come late
    picture = command("Page.captureScreenshot", {"format": "png"})["data"]
    name = f"{page.replace('/', '-') if page != '.' else 'index'}-{width}-{scheme}.png"
    (folder / name).write_bytes(base64.b64decode(picture))

    if measured["dark"] != (scheme == "dark"):
        yield "is shown in the other scheme"
    if measured["sideways"]:
        yield f"scrolls sideways: {measured['beyond']}"
    elif measured["beyond"]:
        yield f"is cut: {measured['beyond']}"
    if width == max(WIDTHS):
        yield from (f"is cut: {text}" for text in measured["cut"])
    yield from (f"loads {name}" for name in measured["foreign"])
    for entry in browser.get_log("browser"):
        if entry["level"] in ("SEVERE", "WARNING"):
            yield entry["message"]


if __name__ == "__main__":
    main()
