// How the search ranks its results, in the place of Sphinx's Scorer. A page that names the query as a keyword (KEYWORDS in
// conf.py) comes first, then titles, then text; logs and source files come last.
var Scorer = {
  score: (result) => {
    const [page, , , , score, file, kind] = result;
    if (kind === "index") result[2] = ""; // the page itself, so that its other results are seen to be the same
    if (location.protocol === "file:" && OPENINGS[page]) result[3] = OPENINGS[page];
    if (file.endsWith(".py")) return score - 2000;
    return /LOG$/.test(page) ? score - 1000 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
