/** One example of the drawer: its picture, its fields, and the buttons that move and delete it. */

import { element, iconButton } from "./dom.js";

const UP = "M12 19V5M6 11l6-6 6 6";
const DOWN = "M12 5v14M6 13l6 6 6-6";
const DELETE = "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13";

/**
 * Creates the item of an example.
 * @param {Shot} shot
 * @param {number} number its place, from 1.
 * @param {number} total how many examples there are.
 * @param {{url: string, change: function(Object): void, move: function(number): void, remove: function(): void}} does
 *   url: of the picture; change gets the fields that were typed, move the number of places.
 * @returns {HTMLLIElement}
 */
export function exampleCard(shot, number, total, { url, change, move, remove }) {
  const name = shot.picture.path || shot.picture.name;
  const attributes = (label, placeholder) => ({
    dir: "auto",
    "aria-label": `${label} ${number}`,
    placeholder,
  });
  const answer = element("textarea.text-field", {
    rows: 3,
    ...attributes("Answer", "The answer that it should have"),
  });
  const question = element("input.text-field", {
    type: "text",
    ...attributes("Question", "Question: as yours"),
  });
  answer.value = shot.answer;
  question.value = shot.question;
  answer.addEventListener("input", () => change({ answer: answer.value }));
  question.addEventListener("input", () => change({ question: question.value }));
  const hint = element("p.hint", { text: "Without an answer it is not used." });
  return element(
    "li.example",
    { "data-shot": shot.id },
    element("img", { src: url, alt: name, title: name }),
    element("div.example-fields", {}, question, answer, hint),
    element(
      "div.example-tools",
      {},
      iconButton(`Move example ${number} up`, UP, () => move(-1), { disabled: number === 1 }),
      iconButton(`Move example ${number} down`, DOWN, () => move(1), { disabled: number === total }),
      iconButton(`Delete example ${number}`, DELETE, remove),
    ),
  );
}
