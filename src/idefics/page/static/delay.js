/** Waiting that can be ended. */

/**
 * Waits.
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 * @throws {DOMException} the signal was aborted.
 */
export function delay(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      if (signal.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(end, Math.max(0, milliseconds));
    signal.addEventListener("abort", end);
  });
}
