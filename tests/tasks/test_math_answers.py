r"""Tests of right and wrong answers, by kind, and of exact arithmetic against floats.

Some of the problems' answers are MATH's (github.com/hendrycks/math, MIT licence).
"""

import cmath
import fractions
import math

import hypothesis
import hypothesis.strategies as st
import pytest

from pkpo_jax.tasks import Grade, Math
from pkpo_jax.tasks.math_answers import numerics, reading, text, values

# Each row has the answer of a problem, and then right answers of responses.
RIGHT = r"""
# Units, and a sentence around it.
12 | 12 apples | 12. | 12 cm | 12\text{ cm} | 12 \,\text{cm}^3 | 12 km/h | 12\ \mathrm{m/s} | $12
12 | \$12 | 12 dollars
60 | 60 km/h
# Names and labels of choices.
12 | x=12 | n = 12 | x = 12\text{ cm} | The answer is 12 | \text{The answer is }12
12 | The final answer is: $12$. | Answer: 12 | (B) 12 | \text{(B) }12 | \textbf{(B)}\ 12 | B) 12
12 | B. 12
# Choices that are the answer.
\text{(B)} | B | (B) | \textbf{(B)} | \textbf{(B)}\ 12 | (B) I and II | (B) A = 5 | (B) AB
B | (B) | \text{B}
(B) | \mathrm{B}
# Degrees.
75 | 75^{\circ} | 75^\circ | 75 degrees | 75\text{ degrees}
75^\circ | 75
\frac{270}7\text{ degrees} | \frac{270}{7}^\circ | 270/7
# Repeating decimals.
0.1\overline{6} | 1/6
\frac13 | 0.\overline{3} | .\overline{3}
\frac{1}{3} | 0.333... | 0.\bar{3}
# Empty sets.
\emptyset | \varnothing | ∅
\varnothing | \{\}
# Multiples of pi.
12\pi | 12pi | 12π | 12 \cdot \pi | 12*pi | \pi \cdot 12 | 12\pi\text{ cm}^2
12\pi | 12\pi \text{ square units}
# Radicals.
\sqrt{2} | sqrt(2) | \sqrt2
3\sqrt{2} | 3√2 | 3 \sqrt 2 | 3\cdot\sqrt{2}
\frac{\sqrt{3}}{2} | \sqrt{3}/2 | \frac12\sqrt3
\frac{\sqrt{3}}{3} | \frac{1}{\sqrt{3}}
\sqrt[3]{2} | 2^{1/3} | \sqrt[3]2
# Sums of radicals.
1+\sqrt{2} | \sqrt2 + 1
1 \pm \sqrt{19} | 1+\sqrt{19}, 1-\sqrt{19} | x = 1 \pm \sqrt{19}
1+\sqrt{19}, 1-\sqrt{19} | 1\pm\sqrt{19}
# Complex numbers.
3+4i | 4i+3
6-5i | 6 - 5 i | -5i+6
# Lists and sets.
1,-2 | -2, 1 | \{1,-2\} | x=1, x=-2 | x = 1 \text{ or } x = -2 | 1 and -2 | 1\text{ and }-2
3, 5, 7 | 3,5,7 | 3, 5, and 7
# Intervals and inequalities.
(3,4] | (3, 4] | 3 < x \le 4
[1,5) | 1\leq x<5 | 1 ≤ x < 5 | 5 > x ≥ 1
(2,\infty) | x>2 | x \in (2,\infty)
(-\infty, 0] | x \le 0 | x\leq0
(-\infty, 2) \cup (3, \infty) | x<2 or x>3 | x < 2 \text{ or } x > 3 | (3,\infty)\cup(-\infty,2)
(-\infty, 2) \cup (3, \infty) | x \in (-\infty,2) ∪ (3,∞)
x \in [-2,7] | [-2,7] | -2\le x\le 7
x>2 | (2,\infty)
# Equations.
y = 2x + 3 | y=2x+3 | y = 3 + 2x | 2x+3
5x - 7y + 11z + 4 = 0 | 5x-7y+11z=-4 | -5x+7y-11z-4=0
# Algebra.
x^2+2x+1 | 1+2x+x^2
(a+5)(b+2) | (b+2)(a+5)
\frac{11+9a}{20} | \frac{9a+11}{20} | \frac{11}{20}+\frac{9a}{20} | (11+9a)/20
6r^2-4r-24 | 6r^2 - 4r - 24
5r^5 | 5 r^{5}
p-q | -q+p
2k+2 | 2 + 2k
\cot x | \cot(x) | cot x
3R^2 | 3R^{2}
# Thousands.
10,\!080 | 10080
10080 | 10,080 | 10{,}080
12345 | 12\,345
58,500 | 58500
58500 | 58 500
1000000 | 1,000,000 | 1 000 000
# Mixed numbers.
137 \frac{1}{2} | 137.5 | \frac{275}{2}
3\frac{1}{2} | 3 1/2
\frac{7}{2} | 3½
\frac72 | 3\dfrac{1}{2}
-\frac72 | -3\frac12
# Decimals and fractions.
.0000672 | 0.0000672 | 0.00006720
0.5 | 1/2 | .5
\frac{1}{2} | 2/4 | \frac{3}{6} | 50\%
-\frac{35}{9} | \frac{-35}{9} | -35/9
# Operations that the answer itself has.
10^6 | 10^{6} | 1000000
2^{100} | 1267650600228229401496703205376
5! | 120
# Matrices.
\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} | \begin{pmatrix} -\frac13 \\ \frac23 \end{pmatrix}
\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} | \begin{bmatrix} 1&0\\0&1\end{bmatrix}
# Words.
\text{east} | East | \text{East}
\text{Evelyn} | Evelyn
\text{ellipse} | an ellipse
\text{no solution} | no solution
\text{yes} | Yes
yes | \textbf{Yes}
# Units that the answer itself has.
5.4 \text{ cents} | 5.4 | 5.4 cents
864 \mbox{ inches}^2 | 864 | 864 \text{ in}^2 | 864 square inches
15\mbox{ cm}^2 | 15 \mathrm{~cm}^2
\$32,\!348 | 32348
\$18.90 | 18.90 | 18.9 dollars
\$36 | \$36.00
# Percent.
5\% | 5 | 5% | 5 percent
# Chains.
7 | 2+5=7 | x=2+5=7
4495 | \binom{31}{28}=4495
5050 | \sum_{k=1}^{100} k = 5050
\pi | \pi \approx 3.14
3.14 | \pi \approx 3.14
\frac{20000}{\pi} | \frac{20000}{\pi} \approx 6366.2
# Bases.
52_8 | 52_{8} | 52
4210_{5} | 4210
2516_8 | 2516_{\text{eight}}
# Ratios and points.
3:4 | 3 : 4
(6,31,-1) | (6, 31, -1)
\left( \frac{3}{2}, -13 \right) | (1.5, -13)
\left( 3, \frac{\pi}{2} \right) | (3, pi/2)
(8,-2) | (x,y) = (8,-2) | (8;-2)
# Signs, brackets and delimiters.
2.05 | \$2.05
-1 | −1 | - 1
7 | +7 | {7} | (7) | 7.0 | 007
x=5 | 5
5 | x = 5. | \(5\) | $$5$$ | \[5\] | `5` | *5* | about 5
# Functions, powers, and others.
\log_2 3 | \log_2(3)
e^2 | e^{2}
\ln 2 | \ln(2)
\frac{\pi^2}{6} | \pi^2/6
18+2\pi | 2\pi+18
3 | three
# Times and scales.
3 \pmod{7} | 3
\frac{x+2}{x-1} | (x+2)/(x-1)
f(x)=x+1 | x+1
\frac{1}{2^{99}} | 2^{-99}
# Others.
\text{Monday} | monday
1.5 million | 1500000
1500000 | 1.5 million
10 | 10 units | 10\text{ (units)}
\text{2:30 p.m.} | 2:30 pm
# Names and wrappers.
0.5 | 50\%
12 | \boxed{12} | 12\text{ ways} | 12 ways. | \mathbf{12} | \$ 12 | 12\,\$ | 12 € | £12
-3 | $-3$ | \text{-3}
\frac{5}{2} | 2.5 hours
20\% | 20
30 | 30^{\circ} | \angle A = 30^\circ | m\angle A = 30 | 30^o | A = 30 | AB = 30
30 | \overline{AB} = 30 | f(3) = 30 | P(A) = 30 | a_5 = 30 | \sin x = 30
\frac{1}{6} | P = \frac{1}{6} | P(A) = \frac{1}{6}
13 | \text{Area} = 13 | \text{Total}=13 | Total = 13 | |AB| = 13 | 13 students | \text{gcd}=13
\frac12 | \cos\theta=\frac12
# Scientific notation, and sums over a denominator.
(1,2) | x=1, y=2 | (1,\,2) | ( 1 , 2 )
\frac{3}{4} | 3/4
10^{-3} | 0.001
6.02\times10^{23} | 6.02 × 10^{23} | 6.02 \cdot 10^{23}
3 \times 10^5 | 300000
2\sqrt{3} | 2√3
\frac{1+\sqrt{5}}{2} | (1+√5)/2 | \frac{1}{2}+\frac{\sqrt5}{2} | \frac12(1+\sqrt5)
2+2\sqrt{3} | 2(1+\sqrt3)
-1+2i | 2i-1
\frac{1}{2}+\frac{\sqrt{3}}{2}i | \frac{1+i\sqrt{3}}{2} | \frac{1}{2}+\frac{i\sqrt{3}}{2}
# Exponentials and number sets.
e^{i\pi/4} | e^{\frac{\pi i}{4}}
x \le 3 | (-\infty,3]
\left(-\infty,3\right] | x ≤ 3
\mathbb{R} | (-\infty,\infty)
\text{all real numbers} | (-\infty,\infty)
\{2,3\} | 2, 3 | x \in \{2,3\}
2,3 | x=2\text{ and }x=3
\{1\pm\sqrt{5},-2\} | -2, 1+\sqrt5, 1-\sqrt5 | x=-2, x = 1\pm\sqrt5
# Lists of words.
A,B,D | A, B, D
\text{A, B} | A, B
\text{(A), (B)} | (A), (B)
\text{June 20} | June 20
\text{Thursday} | \textbf{Thursday} | Thursday.
\text{square} | Square
\text{odd} | odd
\text{neither} | neither
true | True
# More algebra.
y = -2x | y=-2x
x^2+y^2=9 | x^2 + y^2 = 9
2x^2+3x-5 | 3x+2x^2-5
\frac{x}{2}+1 | 1+\frac{1}{2}x
\frac{x+1}{2} | (x+1)/2
x(x+1) | x(1+x)
(x-1)(x+2) | (x+2)(x-1)
3(x+1)^2 | 3(x+1)(x+1)
-(x-1)(x+2) | (1-x)(x+2)
\sin^2 x | \sin^2(x) | (\sin x)^2
2\cos 3x | 2\cos(3x)
\log_{10} 2 | \log_{10}{2}
\sqrt{x^2+1} | \sqrt{1+x^2}
|x| | \left|x\right|
\frac{1}{x} | 1/x | x^{-1}
x^{1/2} | \sqrt{x}
2^n | 2^{n}
n(n+1)/2 | \frac{n(n+1)}{2}
xy | yx
ab | a b
2ab | 2ba
abc | a b c
# Decoration.
12 | 12 \quad | 12\\ | \displaystyle 12 | {\displaystyle 12} | \bf 12 | = 12 | :12
12 | \Rightarrow 12 | \implies 12 | Answer 12 | answer is 12 | Final Answer: 12 | Thus, x = 12
12 | ≈12 | ~12 | 12\textsuperscript{th} | 12th | 12^{th} | 12 \text{ (exactly)}
1 | 1st
2 | 2^\text{nd} | 2\!
3 | 3^{\text{rd}}
0.75 | ¾
1.5 | 1 ½
1234567 | 1,234,567 | 1{,}234{,}567
1234567.5 | 1,234,567.5
12345 | 12\ 345 | 12 345
0.0001 | .0001
# Units of angles, ratios.
\frac{\pi}{6} | \dfrac{1}{6}\pi | \pi/6 \text{ radians} | \frac{\pi}{6} rad
2\pi r | 2 \pi r
\pi r^2 | r^2\pi
4\pi | 4\pi \text{ cm}^3 | 4π square inches
\sqrt{3}:2 | \sqrt3 : 2
1:2 | 1 : 2 | 1 to 2 | 1\text{ to }2 | 1\colon 2
# Units of several words, fractions of units, temperatures, and money.
12 | 12 sq. ft | 12 miles per hour | 12 days per week | 12 boxes of cookies | 12 years old
12 | 12 \frac{m}{s} | 12 \frac{\text{km}}{\text{h}} | 12h | 12 min | 12 \Omega
20 | 20°C | 20^\circ F | 20^\circ\text{ Celsius}
5 | ₹5 | Rs. 5 | ¥5 | 5¢
10\% | 10\text{ percent}
# Sentences that state one number, and doubts that are only about places.
13 | She has 13 | She has 13 apples | \text{James has } 13 \text{ apples} | thirteen
13 | The total cost is \$13. | 13 (approximately) | approx. 13 | 13 \checkmark
13 | \color{red}{13} | \textcolor{red}{13}
3.14 | 3.14159 (approximately)
B | Option B | Choice (B) | \text{Option B}
# Bases, in words and brackets.
52_8 | 52_{(8)} | 52 base 8 | 52\text{ (base 8)} | 52\ (\text{base }8) | 52 (base eight)
# Times.
3:30 | 3:30 PM
3:30 p.m. | 3:30 PM | 3{:}30\text{ pm}
# Sets by a condition, and variables that run over the whole numbers.
(1,2) | \{x \mid 1<x<2\} | \{x : 1 < x < 2\} | \{x \in \mathbb{R} \mid 1 < x < 2\}
\{x \mid x > 3\} | (3,\infty) | x > 3
2k\pi | 2\pi k, k \in \mathbb{Z}
\frac{\pi}{2}+k\pi, k\in\mathbb{Z} | k\pi+\frac{\pi}{2}, k \in \mathbb Z
# Products of variables in another order, vectors, and other spellings of TeX.
ab | ba
pqr | rqp
ab + bc | bc + ba
3\mathbf{i}+2\mathbf{j} | 2\mathbf{j}+3\mathbf{i} | 3\hat{i}+2\hat{j}
1+2i | 2\mathrm{i}+1
e^{2x} | \exp(2x)
\frac{3}{4} | {3 \over 4}
\frac16 | 0.1\dot{6}
# Exponentials without an ordinary value, and denominators that the answer itself has.
3e^{-\pi} | \frac{3}{e^\pi}
2^{\sqrt2} | 2^{\sqrt{2}}
\frac{1}{i} | 1/i
# Products in brackets, and sets of sets.
\frac32 | \frac{3}{2}
\frac72 | 3{\frac12} | 3\dfrac{1}{2}
\{\{1,2\},\{3\}\} | \{\{3\},\{2,1\}\}
5 | \{5\} | x \in \{5\}
# Inequalities that are joined, and names of sets.
(2,5) | x>2 and x<5 | x < 5 \text{ and } x > 2
(-\infty,2)\cup(3,\infty) | x<2, x>3 | y<2 or y>3
x<2 or x>3 | (3,\infty)\cup(-\infty,2)
x=1\pm\sqrt2 | 1\pm\sqrt2 | x=1-\sqrt2, x=1+\sqrt2
# Bars over segments and means, and a name before a rounded value.
30 | \overline{AB}=30 | \bar{x} = 30
\overline{z} | \bar z
3.14 | x \approx 3.14 | A \approx 3.1416 | \text{Area} \approx 3.14 | x = \frac{22}{7} \approx 3.14
3.14 | 3.14159 \approx 3.14
12 | x \approx 12
# Units of angles, both signs, and points in the order of their names.
75^\circ | 75 | 75\text{ degrees}
1-i, -1+i | \pm1 \mp i
(1,2) | y=2, x=1 | (y,x)=(2,1) | x=1 \text{ and } y=2
(3,\frac{\pi}{2}) | r=3, \theta=\frac\pi2
# Fonts and sizes around mathematics, and lines of aligned equations.
\frac12 | \mathbf{\frac{1}{2}} | \textbf{$\frac{1}{2}$} | \text{$\frac12$} | \mathrm{\frac{1}{2}}
\frac12 | \bm{\frac{1}{2}} | \mathbf{x=\frac{1}{2}} | {\large \frac{1}{2}} | \nicefrac12
0.5 | \Large .5 | \mathbf{0.5}
\frac12 | \text{The answer is $\frac12$.} | \text{(B) $\frac12$} | \enspace \frac12 \thinspace
7 | \begin{aligned}7\end{aligned} | \begin{align*} x &= 2+5 \\ &= 7 \end{align*} | \textbf{7} cm
\{1,2\} | \lbrace 1,2 \rbrace
[1,2] | \lbrack 1, 2 \rbrack
(1,2) | \begin{cases} x=1 \\ y=2 \end{cases}
12 | \text{12 cm}^2 | 12\mathrm{cm^{2}} | 12 \text{ cm}^{2}
18 | \text{\$18} | \text{\$}18 | \mathrm{\$18.00}
\mathbf{i}+2\mathbf{j} | \mathbf{\hat i}+2\mathbf{\hat j} | \vec{i}+2\vec j
# Commas between items or thousands, and money and mixed numbers.
300, 400, 500 | 300,400,500 | \{500,400,300\}
1234, 5678 | 1,234, 5,678
18 | US\$18 | USD 18 | 18 US dollars
-5 | \$-5
3.5 | \$3\frac12 | 3\frac12^\circ
\frac13 | 33\frac13\%
# Units after a constant, and products of many letters.
12 | x = 2+10 = 12 m | 12 m/s
\frac{5}{2} | \frac{5}{2} h
12\pi | 12\pi m^2
24abcd | 24dcba | 24 a b c d
# Units and sentences with ordinary words.
12 | 12 months | 12 tents
13 | The number of her tenants is 13
7 | 7 baths
# Names of functions, derivatives and probabilities, and formulas between a name and its value.
2x+1 | f^{-1}(x)=2x+1 | f'(x)=2x+1 | f^{\prime}(x)=2x+1 | \frac{dy}{dx}=2x+1 | 2x+1=y
\frac12 | P(A|B)=\frac12 | P(X=3)=\frac12 | \mathbb{E}[X]=\frac12 | P(A \cap B) \approx \frac12
\frac12 | P(\text{even}) = \frac12 | \Pr(A)=\frac12 | \frac{BD}{DC}=\frac12
7 | 7=x | x = 3+4 = 7
288\pi | V=\frac43\pi r^3=288\pi
# Products of consonants, and bases.
bh | b\cdot h | hb
mgh | m g h
\text{NW} | NW
12 | 12_{10}
52_8 | 52₈ | 52_{\text{base }8}
\log_2 3 | log₂3
# Powers and products of units.
12 | 12 cm squared | 12\text{ cm²} | 12\text{ cm cubed} | 12\text{ N}\cdot\text{m}
60\text{ mph} | 60 miles per hour | 60 mi/h
# Unions and exclusions.
(-\infty,2)\cup(3,\infty) | (-\infty,2) or (3,\infty) | (-\infty,2)\text{ and }(3,\infty)
(-\infty,1)\cup(1,\infty) | \mathbb{R}\setminus\{1\} | x\ne1 | \mathbb{R}\backslash\{1\}
(0,9)\cup(9,36) | (0,36)\setminus\{9\}
[0,\infty) | f(x)\ge0
# Upright functions, other symbols, scientific notation, number words, and vectors.
\arctan 2 | \operatorname{arctan} 2 | \tan^{-1} 2 | \mathrm{arctan}(2)
\cot x | \mathrm{cot}\,x | \operatorname{cot} x
\log_2 3 | \operatorname{log}_2 3
7 | ７ | ｘ＝７
30 | 30∘ | 30\deg | thirty
3:4 | 3∶4
\frac18 | ⅛ | 1⁄8
\sqrt[3]{2} | ∛2
\pm 3 | +/-3
e^{1/2} | \sqrt e
\sqrt{\pi} | \pi^{1/2}
6\times10^5 | 6e5 | 6.0E5
\langle1,2\rangle | \langle1.0,2\rangle | ⟨1,2⟩
21 | twenty-one | \text{twenty one}
# Percent in other words, empty text, and words with digits.
20\% | 20 pct | 20 per cent
7 | 7\text{.}
3.5 | 3\text{ }\frac12
\text{June 20, 2020} | June 20 2020
\frac{3}{2\sqrt2} | 3/(2\sqrt2)
# Lists in text, joining symbols, sets by a condition, and phrases before the answer.
1,-2 | \text{1 and -2} | \text{1, -2} | x=1\lor x=-2 | \text{The solutions are } 1 \text{ and } -2
7 | \to 7 | ∴ 7 | 7 ✓ | \Longrightarrow 7 | \text{Therefore, the answer is } 7
\text{(C)} | The correct option is C | The correct choice is (C)
(-\infty,2)\cup(3,\infty) | \{x \mid x<2 \text{ or } x>3\} | x<2 \lor x>3 | (-inf,2) U (3,inf)
(-\infty,2)\cup(3,\infty) | \{x: x<2\}\cup\{x: x>3\}
(-\infty,1)\cup(1,\infty) | x\in\mathbb{R}, x\ne1
\frac12 | The probability is \frac{1}{2} | \text{the probability is }\frac12
\binom{10}{3} | {10 \choose 3}
6\times10^5 | 6 x 10^5
0.31_5 | 0.31_{5}
\mathbf{i}+2\mathbf{j} | \hat{\imath}+2\hat{\jmath}
# Lists of choices, choices in brackets, exclusions, signs in words, and norms.
\text{A, C} | C, A | A and C | (A), (C) | (A) and (C) | \text{A and C} | \{A, C\}
A,B,D | \text{A, B, and D}
(C) | [C] | \{C\}
(-\infty,1)\cup(1,\infty) | \mathbb{R} - \{1\}
-5 | minus 5 | negative 5
\frac12 | \|\mathbf{v}\|=\frac12
# A domain beside an inequality.
(2,\infty) | x>2 and x \in \mathbb{R} | x>2, x\in\mathbb{R}
"""

# Each row has the answer of a problem, and then wrong answers of responses.
WRONG = r"""
# Operations that are left undone.
56088 | 123*456 | 123 × 456
7 | 3+4 | 10-3
1024 | 2^{10}
10 | \binom{5}{2}
120 | 5!
3 | \lfloor 3.7 \rfloor | \lfloor \pi \rfloor | \log_2 8
\frac13 | \int_0^1 x^2\,dx
1 | \lim_{x\to0}\frac{\sin x}{x} | i^{4}
-2 | \begin{vmatrix}1&2\\3&4\end{vmatrix} | \det\begin{pmatrix}1&2\\3&4\end{pmatrix}
65_8 | 52_8+13_8
\frac12 | \sin 30^\circ | \cos\frac{\pi}{3}
6 | \gcd(12,18)
2 | 17 \bmod 5 | 17 \pmod 5 | \frac{2\sqrt{3}}{\sqrt3}
12 | \frac{84}{7} | 84/7 | 84 \div 7
5 | \sqrt{25} | |-5| | |3+4i|
2\sqrt{2} | \sqrt{8}
\sqrt2+1 | \frac{1}{\sqrt2-1}
\frac56 | \frac12+\frac13
\frac16 | \frac12\cdot\frac13
\frac32 | \frac{1/2}{1/3} | \frac{\frac12}{\frac13}
3+4i | (2+i)^2
-1 | i^2
\frac14 | (1/2)^2 | 2^{-2}
0.06 | 0.2 \cdot 0.3
1.44 | 1.2^2
4 | 0.4 \times 10 | 2\cdot 2
3500 | 3.5 \times 10^3
1000 | 10^3
x^2+2x+1 | (x+1)^2
(x+1)^2 | x^2+2x+1
6x+2 | 2x+3+4x-1
2x | x+x
5r^5 | 5r^2 \cdot r^3
x+1 | \frac{x^2-1}{x-1}
2(x+3) | 2x+6
2x+6 | 2(x+3)
\{1,2\} | \{1,1+1\}
(3,7) | (3,3+4)
[1,4] | [1,2^2]
x=7 | x=3+4
\sqrt{6} | \sqrt{2}\cdot\sqrt3 | \sqrt2\sqrt3
3\sqrt2 | \sqrt{2}+2\sqrt2
12\pi | 3\cdot4\pi
4\pi | 2^2\pi
\frac{\sqrt5}{5} | \frac{5}{\sqrt{125}}
1+\sqrt2 | \sqrt{3+2\sqrt2}
2^{10} | 2^5 \cdot 2^5
10^6 | 10^3\cdot 10^3 | (10^3)^2
# More values than one.
7 | 7 or 8 | 7 \text{ or } 8 | 7, 8 | 7 and 8 | 7/8 | 7 (or 8) | 7 \approx 8 | 8 = 7 | 7=8
7 | 7 \ne 8 | x=7, y=8 | x = 7 or x = 8 | 7 \text{ not } 8 | 78 | 7 8 | -7 | \pm 7 | {7,8} | [7,8]
7 | 7 \to 8 | 7 < 8 | x<7 | x \ge 7 | 7\% | 700\% | 7.3 \approx 7 | 8 \approx 7
5 | 500\% | 5\%
5% | 0.5
7.3 | 7.3 \approx 7.4
# Words.
even | neve
no | on
east | seat
\text{east} | seat
\text{Evelyn} | Navin
\text{May 4} | May 5
yes | no
# Bases, units, doubts.
12 | 12_8 | 21 | 1 2 | 12x | 12\pi | 12 or more | at least 12 | 12 half | 12 million
52_8 | 42 | 53 | 52.0
# Numbers near one another, and decimals for exact values.
5\text{ m} | 5\text{ cm}
\$5 | 5 cents
0.333 | \frac13
\frac13 | 0.333 | 0.3333333333
\pi | 3.14159 | \frac{22}{7}
\sqrt2 | 1.41421356
3.14 | 3.141 | \pi
100000000000000000000 | 100000000000000000001
\frac{1}{10^{20}} | \frac{1}{10^{21}}
0.0000001 | 0.0000002
18446744073709551617 | 18446744073709551616
1e-9 | 2e-9
# Tuples, intervals, lists.
(1,2) | [1,2] | (2,1) | 1,2
\{1,2\} | \{1,2,2\}
1,2 | 1,2,3
(1,2,3) | (1,2)
(1,234) | 1234
1234 | (1,234)
(2,\infty) | x\ge 2 | x<2
[1,5) | 1\le x\le 5
(3,4] | (3,4)
# Equations and variables.
y=2x+3 | y=2x | x=2y+3 | y-2x=3
x=5 | y=5
5x - 7y + 11z + 4 = 0 | 5x-7y+11z+4
2x+3 | x=2x+3
x^2 | x^3
x | X
a+b | a-b
# Choices and ratios.
\text{(B)} | (C) | (C) B
B | (A) or (B) | A, B | (B) or (C) | (B) and (C) | B. or C | (B) not (C) | B: A C D | (B) or others
(C) | C. D. E. | (C) (D) | (C) but maybe (D) | \text{(C) } \text{or } \text{(D)}
12 | (B) 13 | (12) 13
3:4 | 4:3 | 6:8
2:30 | 3:30
# Trivial operations.
7 | \frac{7}{0} | \infty | 7! | 7^1 | 7\cdot1 | --7 | 7+0 | \frac{7}{1} | -(-7) | \sqrt{49}
7 | 7^{1} | seven or eight
\infty | -\infty
0 | x-x | 1-1
# Seven, undone or hedged.
7 | 7 \Rightarrow 8 | 6 \Rightarrow 7 | 7, or maybe 8 | 7?8 | 7;8 | 7 \\ 8 | x=7; x=8 | x=8=7
7 | 7 = 8 = 7 | 8 ≈ 7 | 7 ± 1 | 7\pm 0.5 | 6.9 ≈ 7 | 7.0001 ≈ 7 | \text{7 or 8} | \text{7, 8}
7 | 7 eight | 7\text{ eight} | \sim 8 | 7 \vee 8 | 7 \cup 8 | \{7\} \cup \{8\} | 7 \mid 8 | 7|8
7 | \frac{7}{8} | 7_8 | 7^8 | 7\sqrt{1} | \sqrt[3]{343} | 0b111 | 0x7 | 7e0 | \max(7,3)
7 | \min(7,9) | \lceil 6.2 \rceil | \left\lfloor\frac{22}{3}\right\rfloor | \frac{d}{dx} 7x
7 | \left. 7x \right|_{x=1} | \prod_{k=7}^7 k | 7\sin 90^\circ | 7e^0 | \ln e^7 | 49^{1/2}
7 | (7)(1) | (3)+(4) | 3 + 4 \text{ cm} | 3+4=x | x = 3+4 = 3+4 | 7=3+4 | 1+6 | \tfrac{14}{2}
7 | 14÷2 | 14 : 2 | 0.7 × 10 | 21_3 | 111_{2} | 7.5 | 6.9999999 | 7i | 7\pi | |{-7}| | {7}{8}
7 | 07 08
# One half, undone.
\frac{3}{4} | 4/3
\frac{1}{2} | 1/2/1 | 1-1/2
\frac12 | \frac{1}{2}\cdot 1 | \frac{3}{2}-1 | 2^{-1} | \frac{1!}{2!} | \frac{\binom{3}{1}}{6}
\frac12 | \frac{1+2}{6} | \frac{2\cdot3}{12} | 0.25+0.25 | \sqrt{\frac14} | \sqrt{0.25}
\frac12 | \frac{\sqrt{4}}{4}
# Radicals and complex numbers, undone.
3\sqrt2 | \sqrt{18} | \sqrt{9\cdot2} | \frac{6}{\sqrt2}
2\pi | \pi+\pi | \frac{4\pi}{2}
1+\sqrt2 | \sqrt2+\sqrt1
3+4i | 3+4\sqrt{-1} | (3+4i)\cdot 1 | 3-4i
i | \sqrt{-1}
-4 | (1+i)^4
1 | \frac{i}{i}
2 | 1+1
\log_2 3 | \frac{\ln 3}{\ln 2}
# Algebra in another form.
x^2-1 | (x-1)(x+1)
(x-1)(x+1) | x^2-1
x+3 | (x+1)+2 | x+1+2
x^2 | x\cdot x
x^6 | (x^2)^3 | (x^3)^2
x^5 | x^2x^3
6x | 2\cdot3x | 2x+4x
x | \frac{x^2}{x} | \frac{2x}{2}
\frac{x+2}{x-1} | \frac{(x+2)(x+1)}{(x-1)(x+1)} | \frac{x^2+3x+2}{x^2-1}
8x^3 | (2x)^3
x-y | y-x
x^2+y^2=9 | x^2+y^2=3
x^2+1 | x^2
(x+2)^2-1 | x^2+4x+3
x^2+4x+3 | (x+2)^2-1
6xy | 2x\cdot3y
2\sqrt{x} | \sqrt{4x}
x\sqrt{2} | \sqrt{2x^2}
# Anagrams.
tea | eat
listen | silent
god | dog
abc | abd
odd | ddo
Evelyn | nylevE
\text{A} | B
\text{east} | west
\text{north} | thorn
Monday | dynamo
no | on
ab | ac | a+b
# Sentences that deny, doubt, or state more than a number.
13 | She never has 13 | nobody has 13 | it is not 13 | She doesn't have 13 | it is maybe 13
13 | She has 13 or 14 | She has 3+10 | She has at least 13 | her age was 13 in 1990 | it is 3 10
1 | 1 to 2
12 | 12 base 7 | approx. 13 | 12 (approximately 13)
12_8 | 12 base 7 | 12_{(7)}
B | Option C | Option B or C
3:30 pm | 3:30 a.m.
2k\pi | k\pi, k \in \mathbb{Z}
2k\pi, k \in \mathbb{Z} | 2k\pi, k \in \mathbb{N}
(1,2) | \{x \mid x > 1\}
1 | \exp(0)
3.5 | 3 .5
5 | 5 miles per 2 hours | 5 miles not 6 | ₹6
3 | \overline{3} | {6 \over 2}
# Divisions by i, and exponentials with an ordinary value.
4-3i | \frac{3+4i}{i} | (3+4i)/i
-5i | \frac5i | \frac{10}{2i}
-\frac{i}{\sqrt2} | \frac{1}{i\sqrt2}
-1 | e^{i\pi} | e^{3\pi i}
7 | 7e^{2\pi i} | 6-e^{i\pi}
2 | (\sqrt2^{\sqrt2})^{\sqrt2}
# Products in brackets, which are no mixed numbers, and sets of sets.
\frac72 | 3(1/2) | 3\left(\frac12\right) | (3)(1/2) | (3)\frac12
\frac32 | 3(1/2) | (3)(1/2)
\emptyset | \{\emptyset\} | \{\{\}\}
\{1,2,3\} | \{\{1,2\},\{3\}\} | \{1,\{2,3\}\} | \{\{1\},\{2\},\{3\}\}
\{\{1,2\},\{3,4\}\} | \{1,2,3,4\} | \{\{1,3\},\{2,4\}\}
# Inequalities that are joined by "and", and names of other sets.
(-\infty,2)\cup(3,\infty) | x<2 and x>3 | x < 2 \text{ and } x > 3 | y<2 and x>3 | y<2 or x>3
(2,5) | x>2 or x<5 | x>2 and y<5 | x\ge2 and x<5
x>2 | y>2
x<2 or x>3 | y<2 or y>3
x \in [-2,7] | y \in [-2,7] | -2\le y\le 7
x=1\pm\sqrt2 | y=1\pm\sqrt2
# Conjugates and derivatives.
3+4i | \overline{3+4i} | \overline{3-4i}
z | \overline{z} | \dot z
# Rounded values of answers that are no decimals.
7 | \frac{22}3 \approx 7 | \sqrt{50}\approx 7 | 2.2\pi \approx 7 | x = 6.9 \approx 7 | x \approx 7.2
3.14 | x \approx 3.15
# Angles, both signs, and points in the order of their names.
75^\circ | 75\text{ rad} | 75\text{ cm} | \$75
\$5 | 5^\circ
-\$5 | -5^\circ
1+i, -1-i | \pm1 \mp i
(1,2) | y=1, x=2 | (y,x)=(1,2)
# Fonts around mathematics that is wrong.
\frac12 | \mathbf{\frac{1}{3}} | \text{$\frac12$ or $\frac13$} | \textbf{$1-\frac12$} | \text{1}{2}
7 | \begin{aligned}7\\8\end{aligned} | \begin{aligned}x&=2+5\\&=8\end{aligned} | \text{$7$ or $8$}
3:4 | \begin{cases} 3 & 4 \end{cases}
# Commas between items or thousands, and money and mixed numbers.
300, 400, 500 | 300,400 | 300,400,501 | 300400500
1 | 1,234
7 | \$3+\$4 | \$7 \cdot 1
3.5 | \$3(1/2)
\frac13 | 33\frac43\% | 33\cdot\frac13\%
# Letters that are variables, and no units.
2 | 2\frac{a}{b} | x=2\frac{a}{b}
3 | 3\frac{x}{y} | 3 \frac{dy}{dx}
\$5 | €5 | £5
€5 | £5 | ₹5
2x+3 | 2x+3h | 2x + 3 h
x^2 | x^2h
3+\sqrt2 | 3+\sqrt2 h
24abcd | 24 | 24abce
12 | 12xyzw
# Numerals, bases and denials are no units, and sentences about other numbers.
7 | 7 eighths | 7\text{ tenths} | 7 hundredths | 7 sixteen
7 | 7 dozens | 7 per mille | 7 thirds | 7 tens
7 | 7 cannot be | 7 impossible
12 | 12 octal | 12 in binary
13 | Half of the answer is 13 | The wrong answer is 13 | The reciprocal is 13 | nothing equals 13
# Equations and chains that are no names, and names of other values.
7 | 8=x | 7=x=8 | x^2=7 | 7=2x | -x=7 | xy=7 | 7y=x^2=7
x=7 | y=3+4=7 | 7=y | y=2x=7
f^{-1}(x)=2x | f(x)=2x | f'(x)=2x
288\pi | \frac43\pi r^3=288\pi
bh | bk
52_8 | 42_{10}
# Powers of other units.
12 | 12 squared | 12\text{ N}\cdot 2
15\text{ cm}^2 | 15 cm cubed | 15 m squared
60\text{ mph} | 60 km/h
# Unions and exclusions.
(-\infty,2)\cup(3,\infty) | (-\infty,2) | (-\infty,2) or (4,\infty)
(-\infty,1)\cup(1,\infty) | \mathbb{R} | \mathbb{R}\setminus\{2\} | x\ne 2
7 | x \ne 7 | 7 \setminus 8
x\ne1 | y \ne 1
x\ge0 | f(x)\ge0
# Upright functions, undone roots and products, number words, and vectors.
\arctan 2 | \tan 2 | \frac{1}{\tan 2} | \operatorname{tan} 2
e | \sqrt{e^2}
7 | 0.7e1
21 | twenty-two | twenty
\langle1,2\rangle | \langle 2,1\rangle | \{1,2\}
# Products with 0, fractions that can be reduced, percent in other words, and words with digits.
0 | 0x | 0\pi | 0 \cdot \sqrt2
\frac{\sqrt3}{3} | \frac{2}{2\sqrt3}
7 | 7 per cent | 7 pct
78 | 7\text{ }8
\text{Room 1.5} | Room 15
# Lists in text, joining symbols, sets by a condition, and phrases before the answer.
1,-2 | \text{1 or 2} | \text{1}
7 | \text{7 or 8} | 7 \lor 8 | 7→8
(-\infty,2)\cup(3,\infty) | \{x \mid x<2 \text{ and } x>3\} | \{x \mid x<2\}
\frac12 | The probability is not \frac{1}{2}
120 | {10 \choose 3}
# A name in the middle of a chain hides no other value.
7 | 8=x=7 | 7=x=y=8 | 8=2x=7
# Lists of other choices, and choices in brackets.
\text{A, C} | A | A, B | A or B | (A) and (B) | A, C, D
(C) | [B] | [C, D] | \{B, C\}
# The same digits in base ten.
12_8 | 12_{10}
12 | 12_{8} | 13_{10}
# Two equations side by side.
2 | x = 1 \quad y = 2 | x = 1 y = 2 | x = \frac12 y = 2 | x = y = 2
"""


def rows(table):
    lines = [line.split(" | ") for line in table.strip().splitlines() if not line.startswith("#")]
    return [(answer, boxes) for answer, *boxes in lines]


def grade(answer, box):
    grade = Math().grade({"answer": answer}, f"\\boxed{{{box}}}")
    return grade.reward if isinstance(grade, Grade) else grade


@pytest.mark.parametrize(("answer", "boxes"), rows(RIGHT))
def test_spellings_of_an_answer_are_right(answer, boxes):
    assert {box: grade(answer, box) for box in (answer, *boxes)} == dict.fromkeys(
        (answer, *boxes), 1.0
    )


@pytest.mark.parametrize(("answer", "boxes"), rows(WRONG))
def test_other_answers_and_questions_are_wrong(answer, boxes):
    assert {box: grade(answer, box) for box in boxes} == dict.fromkeys(boxes, 0.0)


rationals = st.fractions(max_denominator=10**12).filter(lambda q: q.denominator > 1)


@hypothesis.given(rationals, rationals, st.integers(2, 50))
def test_a_rational_number_has_one_value_in_all_spellings(number, other, factor):
    over, under = number.numerator, number.denominator
    sign, size = ("-" if over < 0 else ""), abs(over)
    spellings = [
        rf"\frac{{{over}}}{{{under}}}",
        rf"{sign}\dfrac{{{size}}}{{{under}}}",
        f"{over}/{under}",
        f"x = {over}/{under}",
        rf"$\frac{{{over * factor}}}{{{under * factor}}}$.",
    ]
    whole, rest = divmod(size, under)
    if whole:
        spellings.append(rf"{sign}{whole}\frac{{{rest}}}{{{under}}}")
    assert [grade(spellings[0], s) for s in spellings] == [1.0] * len(spellings)
    assert {Math().answer(rf"\boxed{{{s}}}") for s in spellings} == {f"{over}/{under}"}
    wrong = rf"\frac{{{other.numerator}}}{{{other.denominator}}}"
    assert grade(spellings[0], wrong) == float(number == other)
    # A product does not count as its value either.
    assert grade(spellings[0], rf"{sign}{size} \cdot \frac{{1}}{{{under}}}") == 0.0


@hypothesis.given(st.integers(-(10**40), 10**40), st.integers(0, 30), st.integers(1, 9))
def test_decimals_are_exact(digits, places, change):
    def decimal(digits):
        return f"{'-' if digits < 0 else ''}{abs(digits) // 10**places}." + (
            f"{abs(digits) % 10**places:0{places}d}" if places else "0"
        )

    value = fractions.Fraction(digits, 10**places)
    assert grade(decimal(digits), decimal(digits) + "000") == 1.0
    if value.denominator > 1:
        assert grade(decimal(digits), f"{value.numerator}/{value.denominator}") == 1.0
    assert grade(decimal(digits), decimal(digits + change)) == 0.0


# Each expression is LaTeX, with its value by Python's own arithmetic.
leaves = st.integers(0, 20).map(lambda n: (str(n), complex(n))) | st.sampled_from(
    [(r"\pi", complex(math.pi)), ("i", 1j), ("e", complex(math.e)), ("0.25", 0.25 + 0j)]
)


def grown(inner):
    pair = st.tuples(inner, inner)
    return st.one_of(
        pair.map(lambda p: (rf"({p[0][0]})+({p[1][0]})", p[0][1] + p[1][1])),
        pair.map(lambda p: (rf"({p[0][0]})-({p[1][0]})", p[0][1] - p[1][1])),
        pair.map(lambda p: (rf"({p[0][0]}) \cdot ({p[1][0]})", p[0][1] * p[1][1])),
        pair.filter(lambda p: abs(p[1][1]) > 1e-6).map(
            lambda p: (rf"\frac{{{p[0][0]}}}{{{p[1][0]}}}", p[0][1] / p[1][1])
        ),
        st.tuples(inner, st.integers(0, 4)).map(
            lambda p: (f"({p[0][0]})^{{{p[1]}}}", p[0][1] ** p[1])
        ),
        # For other numbers, two conventions for the root are in use.
        inner.filter(lambda p: p[1].imag == 0 and p[1].real > 1e-6).map(
            lambda p: (rf"\sqrt{{{p[0]}}}", cmath.sqrt(p[1]))
        ),
    )


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(st.recursive(leaves, grown, max_leaves=6))
def test_values_are_those_of_floats(expression):
    latex, expected = expression
    hypothesis.assume(abs(expected) < 1e9)
    compute = values.Arithmetic(100_000)
    try:
        value = compute.of(reading.read(text.clean(latex)))
        got = complex(numerics.number(value, compute.spend))
    except (values.Unknown, values.TooLarge):
        # The expression contains 0^0, or a denominator that is 0, but not exactly so in floats.
        hypothesis.reject()
    assert cmath.isclose(got, expected, rel_tol=1e-6, abs_tol=1e-5)
