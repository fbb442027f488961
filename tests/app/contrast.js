// Text with less contrast to what is behind it than 4.5 to 1 (WCAG AA); what is disabled may be fainter.
() => {
    const numbers = colour => colour.match(/[\d.]+/g).map(Number);
    const light = colour => {
        const [r, g, b] = numbers(colour).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if ((numbers(colour)[3] ?? 1) > 0.99) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].filter(n => n.nodeType == 3).map(n => n.textContent.trim()).join("");
        if (!own || !element.checkVisibility({opacityProperty: true}) || element.closest("[disabled], svg, style, script"))
            continue;
        const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) found.push(own + " " + getComputedStyle(element).color + " " + behind(element));
    }
    return found;
}
