import { useState } from 'react'

export default function App() {
  const [count, setCount] = useState(0)

  return (
    <main className="page">
      <p className="badge">
        <span className="dot" /> Running
      </p>
      <h1>Your app is live</h1>
      <p className="lead">
        Edit <code>src/App.jsx</code> and save: this page changes at once, and keeps its state.
      </p>
      <button type="button" onClick={() => setCount(count + 1)}>
        Clicked {count} {count === 1 ? 'time' : 'times'}
      </button>
    </main>
  )
}
