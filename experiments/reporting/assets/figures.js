"use strict";
// What figures have in common, in reports and on the page of `servetwin explore`: fonts, grids, margins.
const touch = matchMedia("(pointer: coarse)").matches;
const axis = {
  gridcolor: "#e8ebef", linecolor: "#9aa3af", zeroline: false, showline: true, ticks: "outside", tickcolor: "#9aa3af",
  ticklen: 4, title: { standoff: 8, font: { size: 12, color: "#5b6472" } }, automargin: true,
};

function merged(given) {
  const layout = {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "#1f2937" },
    margin: { l: 48, r: 14, t: 10, b: 42 }, height: 270, showlegend: false, dragmode: touch ? false : "zoom",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "x unified", hoverlabel: { align: "left" },
    bargap: 0.25, ...given,
  };
  for (const name of ["xaxis", "yaxis", "yaxis2"])
    if (given[name]) layout[name] = { ...axis, ...given[name], title: { ...axis.title, ...(given[name].title || {}) } };
  return layout;
}

const plotOptions = { responsive: true, displayModeBar: false, doubleClick: "reset" };
