// Before anything is drawn: the colours that were chosen here before. Without a choice the system's count.
{
  let theme = null;
  try {
    theme = localStorage.getItem("bloombee-theme");
  } catch {
    // A browser that keeps nothing.
  }
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
}
