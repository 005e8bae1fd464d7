"use strict";
(function () {
  var select = document.getElementById("condition");
  if (!select) return;
  document.getElementById("condition-choice").hidden = false;
  function show() {
    document.querySelectorAll(".condition").forEach(function (part) {
      part.hidden = part.id !== select.value;
    });
  }
  select.addEventListener("change", show);
  show();
})();
