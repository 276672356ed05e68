/** Which words of two texts differ. */

/**
 * Splits two texts into words and marks those that the other has not, by their longest common subsequence.
 * @param {string} first
 * @param {string} second
 * @returns {{word: string, differs: boolean}[][]} the words of both, with the blanks between them as words.
 */
export function diffWords(first, second) {
  const texts = [first, second].map((text) => text.split(/(\s+)/).filter(Boolean));
  const marked = texts.map((parts) => parts.map((word) => ({ word, differs: Boolean(word.trim()) })));
  const [left, right] = marked.map((parts) => parts.filter(({ differs }) => differs));
  const width = right.length + 1;
  const lengths = new Uint32Array((left.length + 1) * width); // of the longest common subsequence from i and j on
  for (let i = left.length - 1; i >= 0; i--) {
    for (let j = right.length - 1; j >= 0; j--) {
      const [below, after] = [lengths[(i + 1) * width + j], lengths[i * width + j + 1]];
      const isSame = left[i].word === right[j].word;
      lengths[i * width + j] = isSame ? lengths[(i + 1) * width + j + 1] + 1 : Math.max(below, after);
    }
  }
  for (let i = 0, j = 0; i < left.length && j < right.length;) {
    if (left[i].word === right[j].word) left[i++].differs = right[j++].differs = false;
    else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i++;
    else j++;
  }
  return marked;
}
